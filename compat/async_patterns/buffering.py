"""Bounded concurrency on streams: which elements run, which wait, and when the next one is pulled."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final

from graft.compat.async_patterns.futures_unordered import FuturesUnordered
from graft.compat.local import awaited

END: Final = object()


def pull_next(source: AsyncIterator[Any]) -> asyncio.Future[Any]:
    """The next element as a task; ``END`` after the last."""

    async def pull() -> Any:
        return await anext(source, END)

    return asyncio.ensure_future(pull())


def _started(element: Any) -> asyncio.Future[Any]:
    """Start an awaitable; any other element is its own result."""
    if inspect.isawaitable(element):
        return asyncio.ensure_future(element)  # Itself: a wrapper that is cancelled early would never await it.
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.set_result(element)
    return done


async def buffered(source: AsyncIterator[Any], limit: int) -> AsyncIterator[Any]:
    """Results in the order of *source*; at most *limit* elements are pulled and not yet given out."""
    pending: deque[asyncio.Future[Any]] = deque()
    pull: asyncio.Future[Any] | None = None
    ended = False
    try:
        while True:
            if pull is None and not ended and len(pending) < limit:
                pull = pull_next(source)
            waiting = [future for future in (pull, pending[0] if pending else None) if future is not None]
            if not waiting:
                return
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if pull is not None and pull.done():
                ended = pull.exception() is not None or pull.result() is END
                if not ended:
                    pending.append(_started(pull.result()))
                elif pull.exception() is not None:
                    pending.append(pull)  # The source's own error is raised in its turn.
                pull = None
                continue  # Pull all there is room for before anything is given out.
            if pending and pending[0].done():
                yield pending.popleft().result()
    finally:
        await _cancel(pending)
        await _leave(pull)


async def buffer_unordered(
    source: AsyncIterator[Any], limit: int | None, start: Callable[[Any], Awaitable[Any]] = _started
) -> AsyncGenerator[Any, None]:
    """Results in the order of completion; at most *limit* elements run, all of them if it is None.

    *start* gives the awaitable of an element. Default: the element itself.
    """
    pull: asyncio.Future[Any] | None = None
    failure: BaseException | None = None
    ended = False
    async with FuturesUnordered() as running:
        try:
            while True:
                if pull is None and not ended and (limit is None or running.active < limit):
                    pull = pull_next(source)
                if pull is None and not running.active:
                    break
                await running.changed(pull)
                if pull is not None and pull.done():
                    failure = pull.exception()
                    ended = failure is not None or pull.result() is END
                    if not ended:
                        running.add(start(pull.result()))
                    pull = None
                while running.has_result:
                    yield await anext(running)
            if failure is not None:
                raise failure
        finally:
            await _leave(pull)


async def for_each_concurrent(source: AsyncIterator[Any], limit: int | None, func: Callable[[Any], Any]) -> None:
    """*func* of every element, at most *limit* at once, all of them if it is None."""

    async def call(element: Any) -> None:
        await awaited(func(element))

    async with aclosing(buffer_unordered(source, limit, call)) as results:
        async for _ in results:
            pass


async def _leave(pull: asyncio.Future[Any] | None) -> None:
    """Pull no further; an element that has just been pulled does not run."""
    if pull is not None:
        await _cancel([pull])
        element = None if pull.cancelled() or pull.exception() else pull.result()
        if inspect.iscoroutine(element):
            element.close()
        elif asyncio.isfuture(element):
            element.cancel()


async def _cancel(futures: Iterable[asyncio.Future[Any]]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
