"""Debounce and throttle: of many events only the latest is handled, when it has become quiet or at a steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final

from graft.compat.async_patterns.polling import awaited
from graft.compat.placement import is_local
from graft.config.validation import seconds
from graft.tasks import blocking_threads
from graft.tasks.shared.latest_event import SharedLatest

_NONE: Final = object()


async def debounce(
    receiver: AsyncIterable[Any], delay: float, handler: Callable[[Any], Any], *, name: str | None = None
) -> None:
    """``handler(latest)`` once nothing has come for *delay* seconds; each event starts the wait anew.

    Ends with *receiver*; an event that is pending then is still handled, when it is due. With *name*, only the latest
    event of all processes that use it is handled, by the process that received it; should that one die before, the
    event is lost.

    Source: the chapter's ``debounce``. Differences: it does not spin before the first event, and it ends.
    """
    gate = _Debounce(seconds("delay", delay), _shared(name, 0.0, "debounce"))
    await _handle(receiver, gate, handler)


async def throttle(
    receiver: AsyncIterable[Any], interval: float, handler: Callable[[Any], Any], *, name: str | None = None
) -> None:
    """The first event at once; during the next *interval* seconds only the latest is kept, and handled at its end.

    Ends with *receiver*, and after a pending event. With *name*, for all processes that use it together, as
    :func:`debounce`.
    """
    gate = _Throttle(seconds("interval", interval), _shared(name, interval, "throttle"))
    await _handle(receiver, gate, handler)


def _shared(name: str | None, interval: float, kind: str) -> SharedLatest | None:
    return None if name is None or is_local() else SharedLatest(name, interval, kind=kind)


class _Gate:
    """When the pending event is due, on the loop's clock."""

    def __init__(self, seconds: float, shared: SharedLatest | None) -> None:
        self.seconds = seconds
        self.shared = shared
        self.due = 0.0
        self._number = 0

    async def came(self, now: float) -> None:
        """An event has come, in place of the pending one."""
        if self.shared is not None:
            self._number = await blocking_threads.ask(self.shared.offer)

    async def opens(self, now: float) -> bool | None:
        """Whether the pending event is to be handled now; None: not by this process."""
        if self.shared is None:
            return True
        wait = await blocking_threads.ask(self.shared.try_handle, self._number)
        if wait < 0:
            return None
        self.due = now + wait
        return wait == 0


class _Debounce(_Gate):
    async def came(self, now: float) -> None:
        await super().came(now)
        self.due = now + self.seconds


class _Throttle(_Gate):
    async def opens(self, now: float) -> bool | None:
        opens = await super().opens(now)
        if opens:
            self.due = now + self.seconds
        return opens


async def _handle(receiver: AsyncIterable[Any], gate: _Gate, handler: Callable[[Any], Any]) -> None:
    clock = asyncio.get_running_loop().time
    events = aiter(receiver)
    pending: Any = _NONE
    pull: asyncio.Future[Any] | None = asyncio.ensure_future(_next(events))
    try:
        while pull is not None or pending is not _NONE:
            wait = None if pending is _NONE else max(0.0, gate.due - clock())
            if pull is None:
                await asyncio.sleep(wait or 0.0)
            else:
                await asyncio.wait([pull], timeout=wait)
                if pull.done():
                    event = pull.result()
                    pull = None if event is _NONE else asyncio.ensure_future(_next(events))
                    if event is not _NONE:
                        pending = event
                        await gate.came(clock())
            if pending is not _NONE and gate.due <= clock():
                opens = await gate.opens(clock())
                value, pending = (pending, pending) if opens is False else (pending, _NONE)
                if opens:
                    await awaited(handler(value))
    finally:
        if pull is not None:
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events, _NONE)
