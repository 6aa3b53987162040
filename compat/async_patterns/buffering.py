"""Bounded concurrency on streams: which elements run, which wait, and when the next one is pulled."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

from graft.compat.async_patterns.futures_unordered import FuturesUnordered
from graft.compat.local import awaited


class _End(Exception):
    """The source has no more elements; a task must not raise StopAsyncIteration itself."""


async def _pull(source: AsyncIterator[Any]) -> Any:
    try:
        return await anext(source)
    except StopAsyncIteration:
        raise _End from None


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
                pull = asyncio.ensure_future(_pull(source))
            waiting = [future for future in (pull, pending[0] if pending else None) if future is not None]
            if not waiting:
                return
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if pull is not None and pull.done():
                error = pull.exception()
                ended = error is not None
                if error is None:
                    pending.append(_started(pull.result()))
                elif not isinstance(error, _End):
                    pending.append(pull)  # The source's own error comes in its place.
                pull = None
                continue  # Pull all there is room for before anything is given out.
            if pending and pending[0].done():
                yield pending.popleft().result()
    finally:
        await _cancel(pending)
        await _leave(pull)


async def buffer_unordered(
    source: AsyncIterator[Any], limit: int | None, start: Callable[[Any], Awaitable[Any]] | None = None
) -> AsyncGenerator[Any, None]:
    """Results in the order of completion; at most *limit* elements run, all of them where it is None.

    *start* gives the awaitable of an element. Default: the element itself.
    """
    async with FuturesUnordered() as running, aclosing(_run_each(source, limit, running, start or _started)) as changes:
        async for _ in changes:
            while running.has_result:
                yield await anext(running)


async def for_each_concurrent(source: AsyncIterator[Any], limit: int | None, func: Callable[[Any], Any]) -> None:
    """*func* of every element, at most *limit* at once, all of them where it is None."""

    async def call(element: Any) -> None:
        await awaited(func(element))

    async with aclosing(buffer_unordered(source, limit, call)) as results:
        async for _ in results:
            pass


async def _run_each(
    source: AsyncIterator[Any], limit: int | None, running: FuturesUnordered, start: Callable[[Any], Any]
) -> AsyncGenerator[None, None]:
    """Keep up to *limit* elements running; yields whenever there may be results to take."""
    pull: asyncio.Future[Any] | None = None
    failure: BaseException | None = None
    ended = False
    try:
        while True:
            if pull is None and not ended and (limit is None or running.active < limit):
                pull = asyncio.ensure_future(_pull(source))
            if pull is None and not running.active:
                break
            await running.changed(pull)
            if pull is not None and pull.done():
                error = pull.exception()
                if error is None:
                    running.add(start(pull.result()))
                else:
                    ended = True
                    failure = None if isinstance(error, _End) else error
                pull = None
            yield
        if failure is not None:
            raise failure
    finally:
        await _leave(pull)


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
