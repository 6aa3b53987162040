"""One Lua script on this deployment's Redis: what the named limits have in common.

Every script reads Redis's own clock, so machines need not agree on the time, and changes its keys in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis

from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks.errors import BrokerUnavailable, TaskQueueError

PREFIX: Final = "graft:shared:"
KEPT: Final = 86400  # Seconds for which Redis remembers what nobody uses.
IN_USE: Final = 60  # Seconds after its last use for which a name keeps its figures.

CLOCK: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
"""


class DifferentFiguresError(TaskQueueError, ValueError):
    """Two processes use one name with different limits."""


def keys(kind: str, name: str, *parts: str) -> list[str]:
    """The keys behind *name*; things of different kinds may share a name."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r} must be a text that is not empty")
    return [f"{PREFIX}{kind}:{name}:{part}" for part in parts]


def run(script: str, names: Sequence[str], *arguments: Any) -> Any:
    """What *script* returns; blocks for a round trip.

    Raises:
        BrokerUnavailable: Redis did not answer.
    """
    try:
        return shared().eval(script, len(names), *names, *arguments)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BrokerUnavailable(f"{settings().broker_name} did not answer: {error}") from error


def refuse_difference(kind: str, name: str, theirs: bytes, mine: object) -> DifferentFiguresError:
    """The error for a name that is in use with other figures."""
    return DifferentFiguresError(
        f"the {kind} {name!r} is in use with {theirs.decode()}, and this process asks for {mine}; give both the same, "
        f"another name, or wait until it has been idle for {IN_USE} s"
    )


def at_least_one(what: str, value: int) -> int:
    """*value*, a count that must allow something."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}={value!r} must be a whole number")
    if value < 1:
        raise ValueError(f"{what}={value} must be at least 1")
    return value


def seconds(what: str, value: float) -> float:
    """*value*, a duration that must be positive."""
    if not value > 0:
        raise ValueError(f"{what}={value!r} must be more than 0 seconds")
    return value
