"""The shape of every shared primitive: a name, a few keys in Redis behind it, and one Lua script that changes them.

A script does one operation in one step, and reads Redis's own clock, so machines need not agree on the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import redis
from redis.commands.core import Script

from graft.config.deployment import settings
from graft.config.keys import SHARED
from graft.config.redis_client import shared, why_not
from graft.tasks.errors import BrokerUnavailable, TaskQueueError

KEPT: Final = 86400  # Seconds for which Redis remembers what nobody uses.
IN_USE: Final = 60  # Seconds after its last use for which a name keeps its limits.


class DifferentLimitsError(TaskQueueError, ValueError):
    """Two processes use one name with different limits."""


@dataclass(frozen=True)
class SharedPrimitive:
    """State behind *name* that all processes of a deployment share. Every method blocks for a round trip.

    Primitives of different *kind* may share a name. Every method raises BrokerUnavailable when Redis does not answer.
    """

    name: str
    kind: str = field(default="", kw_only=True)

    script: ClassVar[Script]
    parts: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name={self.name!r} must be a text that is not empty")

    @property
    def prefix(self) -> str:
        """How every key behind the name begins."""
        return f"{SHARED}{self.kind}:{self.name}:"

    @property
    def keys(self) -> list[str]:
        """The keys behind the name, in the order of ``parts``."""
        return [self.prefix + part for part in self.parts]

    def _run(self, operation: str, *arguments: Any, keys: Sequence[str] | None = None) -> Any:
        """What *operation* of the script returns."""
        with outage_is_unavailable():
            arguments = (operation, KEPT, IN_USE, *arguments)
            return self.script(keys=self.keys if keys is None else keys, args=arguments, client=shared())

    def _refuse_difference(self, theirs: bytes, mine: object) -> DifferentLimitsError:
        """The error for a name that is in use with other limits."""
        return DifferentLimitsError(
            f"the {self.kind} {self.name!r} is in use with {theirs.decode()}, and this process asks for {mine}; give "
            f"both the same, another name, or wait until it has been idle for {IN_USE} s"
        )


@contextmanager
def outage_is_unavailable() -> Iterator[None]:
    """Raise BrokerUnavailable where Redis does not answer."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        what, remedy = why_not(error)
        raise BrokerUnavailable(f"{settings().broker_name} {what}: {error}; {remedy}") from error
