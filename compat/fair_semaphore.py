"""A semaphore that serves waiters of any event loop and thread in the order of asking."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from graft.compat.local import awaited
from graft.config.validation import at_least_one

T = TypeVar("T")


class FairSemaphore:
    """At most *limit* holders at once. Tied to no event loop; waiters of a closed loop are passed over."""

    def __init__(self, limit: int) -> None:
        self.limit = at_least_one("limit", limit)
        self._lock = threading.Lock()
        self._held = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        return self.limit - self._held

    async def acquire(self) -> None:
        with self._lock:
            if self._held < self.limit:  # Then nobody waits.
                self._held += 1
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with self._lock:
                waits = waiter in self._waiters
                if waits:
                    self._waiters.remove(waiter)
            if not waits:
                self.release()  # It was acquired, but nobody is left to use it.
            raise

    def release(self) -> None:
        """Pass it on to the first waiter; any thread may call this."""
        with self._lock:
            while self._waiters:
                if wake(self._waiters.popleft()):
                    return
            self._held -= 1


def wake(waiter: asyncio.Future[None]) -> bool:
    """Wake a coroutine of any loop; False if its loop has been closed."""
    try:
        waiter.get_loop().call_soon_threadsafe(_settle, waiter)
    except RuntimeError:
        return False
    return True


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Acquiring(Generic[T]):
    """The answer of an ``acquire()``: ``async with pool.acquire() as held``, or ``held = await pool.acquire()``."""

    def __init__(self, acquire: Callable[[], Coroutine[Any, Any, T]], release: Callable[[T], Any]) -> None:
        self._acquire = acquire
        self._release = release

    def __await__(self) -> Generator[Any, None, T]:
        return self._acquire().__await__()

    async def __aenter__(self) -> T:
        self._held = await self._acquire()
        return self._held

    async def __aexit__(self, *exc_info: object) -> None:
        await awaited(self._release(self._held))
