"""Debounce and throttle: of many events only the latest is handled, after a quiet time or at a steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Any

from graft.compat.async_patterns.buffering import END, pull_next
from graft.compat.local import awaited
from graft.compat.placement import shared_name
from graft.config.validation import seconds
from graft.tasks import blocking_threads
from graft.tasks.shared.latest_event import SharedLatest


async def debounce(
    receiver: AsyncIterable[Any], delay: float, handler: Callable[[Any], Any], *, name: str | None = None
) -> None:
    """``handler(latest)`` once nothing has come for *delay* seconds; each event starts the wait anew.

    Ends with *receiver*; an event that is pending then is still handled, when it is due. With *name*, only the latest
    event of all processes that use it is handled, by the process that received it; if that process dies before, the
    event is lost.

    Source: the chapter's ``debounce``. Differences: it does not spin before the first event, and it ends.
    """
    wait = seconds("delay", delay)
    await _handle(receiver, handler, _Gate(name, 0.0, "debounce"), after_event=wait, after_handled=0.0)


async def throttle(
    receiver: AsyncIterable[Any], interval: float, handler: Callable[[Any], Any], *, name: str | None = None
) -> None:
    """The first event at once; during the next *interval* seconds only the latest is kept, and handled at its end.

    Ends with *receiver*, and after a pending event. With *name*, for all processes that use it together, as
    :func:`debounce`.
    """
    wait = seconds("interval", interval)
    await _handle(receiver, handler, _Gate(name, interval, "throttle"), after_event=None, after_handled=wait)


class _Gate:
    """Says whether this process may handle its pending event: always, unless a name is shared with others."""

    def __init__(self, name: str | None, interval: float, kind: str) -> None:
        self._shared = SharedLatest(shared, interval, kind=kind) if (shared := shared_name(name)) else None
        self._number = 0

    async def note_event(self) -> None:
        if self._shared is not None:
            self._number = await blocking_threads.ask(self._shared.offer)

    async def wait(self) -> float:
        """0 if the pending event may be handled now; seconds to wait; below 0 if another process has a later one."""
        return await blocking_threads.ask(self._shared.try_handle, self._number) if self._shared is not None else 0.0


async def _handle(
    receiver: AsyncIterable[Any],
    handler: Callable[[Any], Any],
    gate: _Gate,
    after_event: float | None,
    after_handled: float,
) -> None:
    clock = asyncio.get_running_loop().time
    events = aiter(receiver)
    due, pending = 0.0, END
    pull: asyncio.Future[Any] | None = pull_next(events)
    try:
        while pull is not None or pending is not END:
            wait = None if pending is END else max(0.0, due - clock())
            if pull is None:
                await asyncio.sleep(wait or 0.0)
            else:
                await asyncio.wait([pull], timeout=wait)
                if pull.done():
                    event = pull.result()
                    pull = None if event is END else pull_next(events)
                    if event is not END:
                        pending = event
                        await gate.note_event()
                        due = due if after_event is None else clock() + after_event
            if pending is not END and due <= clock():
                wait = await gate.wait()
                due = clock() + (wait or after_handled)
                if wait <= 0:
                    event, pending = pending, END
                if wait == 0:
                    await awaited(handler(event))
    finally:
        if pull is not None:
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)
