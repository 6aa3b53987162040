"""How a coroutine asks Redis, and asks again until the answer is the one it waits for."""

from __future__ import annotations

import asyncio
import inspect
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


def growing(looks: int) -> float:
    """Seconds to wait after so many looks."""
    return min(FIRST_PAUSE * looks, LAST_PAUSE)


async def poll(ask: Callable[[], T | None], pause: Callable[[int], float] = growing) -> T:
    """Call *ask*, which blocks for a round trip, in a thread until it returns something.

    An outage that begins while this waits is sat out, for as long as the deployment lets calls in flight outlive one.
    """
    looks = 0
    lost_at: float | None = None
    while True:
        try:
            answer = await blocking_threads.ask(ask)
            lost_at = None
        except BrokerUnavailable:
            lost_at = lost_at or time.monotonic()
            if looks == 0 or time.monotonic() - lost_at > settings().outage_grace:
                raise
            answer = None
        if answer is not None:
            return answer
        looks += 1
        await asyncio.sleep(LAST_PAUSE if lost_at else pause(looks))


def soon(do: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Have a thread tell Redis something that nobody waits for; at the end of the process leases end by themselves."""
    blocking_threads.soon(_tell, do, args, kwargs)


async def tell(do: Callable[..., object], *args: Any) -> None:
    """Tell Redis something that it would find out by itself: an outage is logged. Told even if this is cancelled."""
    await asyncio.shield(blocking_threads.ask(_tell, do, args, {}))


def _tell(do: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        do(*args, **kwargs)
    except BrokerUnavailable as error:
        logger.warning("Redis was not told, and will find out when the lease ends: %s", error)


async def awaited(value: Any) -> Any:
    """*value*, or what it comes to if it is an awaitable: functions may be plain or async."""
    return await value if inspect.isawaitable(value) else value
