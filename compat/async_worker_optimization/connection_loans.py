"""What lending connections takes: fair turns, the record of a loan, and the two ways to ask for one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any


@dataclass(frozen=True)
class Loan:
    """A connection in somebody's hands. ``since`` is on the monotonic clock."""

    connection: Any
    location: str
    since: float

    def as_leak(self, now: float, max_hold_seconds: float) -> dict[str, Any] | None:
        """What to report when it is held for longer than *max_hold_seconds*, else None; "high" beyond twice as long."""
        held = now - self.since
        if held <= max_hold_seconds:
            return None
        return {
            "location": self.location,
            "type": "long_held_connection",
            "held_seconds": held,
            "severity": "high" if held > 2 * max_hold_seconds else "medium",
            "connection": self.connection,
        }


class Turns:
    """A bounded number of turns, given in the order of asking. Serves one event loop after the other."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def take(self, limit: int) -> None:
        """Wait until fewer than *limit* are taken, behind those who asked before."""
        if limit < 1:
            raise ValueError(f"max_size={limit} allows no loan")
        self._waiters = deque(filter(_is_waiting, self._waiters))
        if self._taken < limit and not self._waiters:
            self._taken += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self.give_back()  # The turn came, but nobody is left to use it.
            raise

    def give_back(self) -> None:
        """Hand a turn to whoever has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if _is_waiting(waiter):
                waiter.set_result(None)
                return
        self._taken -= 1


def _is_waiting(waiter: asyncio.Future[None]) -> bool:
    """Whether somebody still waits for it; a loop that was closed took its waiters along."""
    return not waiter.done() and not waiter.get_loop().is_closed()


class Acquiring:
    """A loan about to be made: await it, or enter it."""

    def __init__(self, lend: Callable[[], Coroutine[Any, Any, Any]], give_back: Callable[[Any], object]) -> None:
        self._lend = lend
        self._give_back = give_back
        self._connection: Any = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._lend().__await__()

    async def __aenter__(self) -> Any:
        self._connection = await self._lend()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back(self._connection)


class Released:
    """What a release answers, for callers who await it."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


def line_of(frame: FrameType) -> str:
    """Where *frame* is, for people."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
