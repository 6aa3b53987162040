"""Sets of running work that grow while their results are taken, in the order in which it completes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from typing import Any


class FuturesUnordered(AsyncIterator[Any]):
    """Add awaitables at any time; iterate over their results as they complete. An empty set ends the iteration.

    An awaitable starts when it is added, on the running loop. Its error is raised in its turn, and the others go on;
    :meth:`aclose`, or leaving ``async with``, cancels those that still run.

    Source: the chapter's ``FuturesUnordered``; its ``JoinSet`` is the same class with other method names.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Future[Any]] = set()
        self._done: deque[asyncio.Future[Any]] = deque()
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        """Elements that run, and results that are not taken."""
        return len(self._running) + len(self._done)

    @property
    def active(self) -> int:
        """Elements that still run."""
        return len(self._running)

    def add(self, awaitable: Awaitable[Any]) -> None:
        future = asyncio.ensure_future(awaitable)
        self._running.add(future)
        future.add_done_callback(self._note)

    spawn = add

    def _note(self, future: asyncio.Future[Any]) -> None:
        self._running.discard(future)
        self._done.append(future)
        self._woken.set()

    async def __anext__(self) -> Any:
        while not self._done:
            if not self._running:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._done.popleft().result()

    @property
    def has_result(self) -> bool:
        return bool(self._done)

    async def changed(self, other: asyncio.Future[Any] | None) -> None:
        """Wait until one of these, or *other*, has completed."""
        if not self._done:
            waiting = self._running if other is None else {other, *self._running}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    async def next(self, default: Any = None) -> Any:
        """The next result; *default* when the set is empty."""
        return await anext(self, default)

    join_next = next

    async def aclose(self) -> None:
        """Cancel the elements that run, and wait until they have ended."""
        running = list(self._running)
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for future in self._done:
            if not future.cancelled():
                future.exception()  # Retrieved, or asyncio warns.
        self._done.clear()

    async def __aenter__(self) -> FuturesUnordered:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


JoinSet = FuturesUnordered
