"""Polling: a coroutine asks Redis again until there is an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from graft.config.deployment import settings
from graft.tasks import blocking_threads
from graft.tasks.errors import BrokerUnavailable

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger("graft.compat.async_patterns")

FIRST_PAUSE: Final = 0.01
LAST_PAUSE: Final = 0.1


async def poll(ask: Callable[[], T | None], pause: Callable[[int], float] | None = None) -> T:
    """Call *ask*, which blocks for a round trip, in a thread until it returns something.

    An outage that begins meanwhile is an error only if it outlasts the deployment's ``outage_grace``.

    Args:
        pause: seconds to wait after so many attempts. Default: 10 ms more after each, up to 100 ms.
    """
    attempts = 0
    lost_at: float | None = None
    while True:
        try:
            answer = await blocking_threads.ask(ask)
            lost_at = None
        except BrokerUnavailable:
            lost_at = lost_at or time.monotonic()
            if attempts == 0 or time.monotonic() - lost_at > settings().outage_grace:
                raise
            answer = None
        if answer is not None:
            return answer
        attempts += 1
        if lost_at or pause is None:
            await asyncio.sleep(LAST_PAUSE if lost_at else min(FIRST_PAUSE * attempts, LAST_PAUSE))
        else:
            await asyncio.sleep(pause(attempts))


def soon(do: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call *do*, which writes to Redis, in a thread; nobody waits. If the process ends first, leases expire."""
    blocking_threads.soon(_write, do, args, kwargs)


async def write(do: Callable[..., object], *args: Any) -> None:
    """Call *do*, which writes to Redis, in a thread. An outage is only logged; a cancelled caller changes nothing."""
    await asyncio.shield(blocking_threads.ask(_write, do, args, {}))


def _write(do: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        do(*args, **kwargs)
    except BrokerUnavailable as error:
        logger.warning("Redis could not be written to; the lease will expire instead: %s", error)
