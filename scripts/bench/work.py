"""The functions that the workers of every contender run. Each returns its item, so that results can be checked exactly.

Imports nothing but the standard library: the workers of other task queues import it too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, Final

REDIS_URL: Final = "GRAFT_BENCH_REDIS_URL"  # The variable that tells them where the Redis of the benchmark is.


def noop(item: Any) -> Any:
    return item


def spin(seconds: float) -> tuple[float, int, float, float]:
    """Compute for *seconds* of processor time, whatever else the machine does; also who did it, its begin and its end.

    Processor time and not time on the clock: a neighbour that takes the core away must not count as our work.
    """
    began = time.monotonic()
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds, os.getpid(), began, time.monotonic()


def pause(seconds: float) -> float:
    """Wait, as a plain function that asks some server would."""
    time.sleep(seconds)
    return seconds


async def nap(seconds: float) -> float:
    """Wait, as a coroutine that asks some server would."""
    await asyncio.sleep(seconds)
    return seconds


async def anoop(item: Any) -> Any:
    return item


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    function.__name__: function for function in (noop, spin, pause, nap, anoop)
}
