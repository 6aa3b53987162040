"""Fair turns inside this process: given in the order of asking, whatever loops and threads ask."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from graft.config.validation import at_least_one


class Turns:
    """So many turns at once. Tied to no event loop; waiters of a loop that was closed are passed over."""

    def __init__(self, limit: int) -> None:
        self.limit = at_least_one("limit", limit)
        self._lock = threading.Lock()
        self._free = limit
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def free(self) -> int:
        return self._free

    async def take(self) -> None:
        """Wait for a turn, behind those who asked before."""
        with self._lock:
            if self._free:  # Then nobody waits.
                self._free -= 1
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
                self.give_back()  # The turn came, but nobody is left to use it.
            raise

    def give_back(self) -> None:
        """Hand a turn to whoever has waited longest; from any thread."""
        with self._lock:
            while self._waiters:
                if wake(self._waiters.popleft()):
                    return
            self._free += 1


def wake(waiter: asyncio.Future[None]) -> bool:
    """Wake a coroutine of any loop; False when its loop has been closed."""
    try:
        waiter.get_loop().call_soon_threadsafe(_settle, waiter)
    except RuntimeError:
        return False
    return True


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
