"""Waiting by looking again and again: for room in a queue, and for the end of a pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

POLLS: Final = (0.001, 0.002, 0.005, 0.01, 0.02)  # Seconds between looks at a queue without room, or a pool's end.


def poll(attempt: int) -> float:
    """Seconds until the next look."""
    return POLLS[min(attempt, len(POLLS) - 1)]


def wait_until(condition: Callable[[], bool], timeout: float | None) -> bool:
    """Look until *condition* holds, or *timeout* seconds are over: whether it did."""
    deadline = None if timeout is None else time.monotonic() + timeout
    attempt = 0
    while not condition():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(poll(attempt))
        attempt += 1
    return True


async def wait_until_async(condition: Callable[[], bool]) -> None:
    """The same for a coroutine, without a limit; *condition* may block and runs in a thread."""
    attempt = 0
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(poll(attempt))
        attempt += 1
