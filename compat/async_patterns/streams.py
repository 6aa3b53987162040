"""Lazy streams, whose elements are pulled one at a time; and the chapter's generators."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec

from graft.compat.async_patterns import buffering
from graft.compat.local import awaited
from graft.config.validation import at_least_one, seconds

P = ParamSpec("P")

Source = Iterable[Any] | AsyncIterable[Any]


def _stream(
    generate: Callable[Concatenate[Stream, P], AsyncIterator[Any]],
) -> Callable[Concatenate[Stream, P], Stream]:
    """A method that gives a Stream of what *generate* yields."""

    @functools.wraps(generate)
    def method(self: Stream, /, *args: P.args, **kwargs: P.kwargs) -> Stream:
        return Stream(generate(self, *args, **kwargs))

    return method


class Stream(AsyncIterator[Any]):
    """An async iterator over any iterable or async iterable; most methods give another Stream.

    A stream is read once. Functions may be plain or async except where said otherwise.

    Source: the chapter's streams (``StreamExt``).
    """

    def __init__(self, source: Source) -> None:
        self._iterator = _iterator(source)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._iterator)

    async def aclose(self) -> None:
        """Read no further, and cancel the elements that run."""
        if isinstance(self._iterator, AsyncGenerator | Stream):
            await self._iterator.aclose()

    @classmethod
    def interval(cls, period: float) -> Stream:
        """Ticks, numbered from 0: the first at once, then one each *period* seconds, without drift."""
        return cls(_ticks(seconds("period", period)))

    @classmethod
    def from_channel(cls, receiver: AsyncIterable[Any]) -> Stream:
        """The values that the channel receives, until it is closed and empty."""
        return cls(receiver)

    @_stream
    async def map(self, func: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """*func* of each. An async one leaves awaitables, for :meth:`buffered` and :meth:`buffer_unordered`."""
        async for element in self:
            yield func(element)

    @_stream
    async def then(self, func: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """*func* of each, awaited before the next is pulled."""
        async for element in self:
            yield await awaited(func(element))

    @_stream
    async def filter(self, predicate: Callable[[Any], Any]) -> AsyncIterator[Any]:
        async for element in self:
            if await awaited(predicate(element)):
                yield element

    @_stream
    async def filter_map(self, func: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """*func* of each, where that is not None."""
        async for element in self:
            value = await awaited(func(element))
            if value is not None:
                yield value

    @_stream
    async def flat_map(self, func: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """The elements of ``func(element)``, an iterable or a stream, for each in order."""
        async for element in self:
            async for inner in Stream(await awaited(func(element))):
                yield inner

    def take(self, count: int) -> Stream:
        """At most *count*, 0 or more; one more is not pulled."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"count={count!r} must be a whole number, 0 or more")
        return self._first(count)

    @_stream
    async def _first(self, count: int) -> AsyncIterator[Any]:
        for _ in range(count):
            try:
                element = await anext(self)
            except StopAsyncIteration:
                return
            yield element

    @_stream
    async def chain(self, other: Source) -> AsyncIterator[Any]:
        """These elements, then those of *other*."""
        async for element in self:
            yield element
        async for element in Stream(other):
            yield element

    @_stream
    async def zip(self, other: Source) -> AsyncIterator[Any]:
        """Pairs, until the shorter one ends."""
        others = Stream(other)
        async for element in self:
            try:
                partner = await anext(others)
            except StopAsyncIteration:
                return
            yield element, partner

    @_stream
    async def enumerate(self) -> AsyncIterator[Any]:
        """Pairs of an index, from 0, and the element."""
        index = 0
        async for element in self:
            yield index, element
            index += 1

    @_stream
    async def scan(self, initial: Any, func: Callable[[Any, Any], Any]) -> AsyncIterator[Any]:
        """``func(state, element)`` gives the new state and an output, or None to end the stream."""
        state = initial
        async for element in self:
            step = await awaited(func(state, element))
            if step is None:
                return
            state, output = step
            yield output

    def chunks(self, size: int) -> Stream:
        """Lists of *size*, the last one shorter, none empty."""
        return self._lists(at_least_one("size", size))

    @_stream
    async def _lists(self, size: int) -> AsyncIterator[Any]:
        chunk: list[Any] = []
        async for element in self:
            chunk.append(element)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def buffered(self, limit: int) -> Stream:
        """The results of awaitable elements, in their order.

        At most *limit* are pulled and not yet given out, finished ones included. An element that raises ends the
        stream in its turn, and cancels the elements that run.
        """
        return Stream(buffering.buffered(self, at_least_one("limit", limit)))

    def buffer_unordered(self, limit: int) -> Stream:
        """The results of awaitable elements as they complete; at most *limit* run."""
        return Stream(buffering.buffer_unordered(self, at_least_one("limit", limit)))

    async def for_each_concurrent(self, limit: int | None, func: Callable[[Any], Any]) -> None:
        """*func* of each, in no order, at most *limit* at once; None or 0 means unlimited."""
        await buffering.for_each_concurrent(self, at_least_one("limit", limit) if limit else None, func)

    async def next(self, default: Any = None) -> Any:
        """The next element; *default* at the end."""
        return await anext(self, default)

    async def collect(self) -> list[Any]:
        return [element async for element in self]

    async def fold(self, initial: Any, func: Callable[[Any, Any], Any]) -> Any:
        """The last ``func(accumulated, element)``; *initial* of an empty stream."""
        accumulated = initial
        async for element in self:
            accumulated = await awaited(func(accumulated, element))
        return accumulated

    async def for_each(self, func: Callable[[Any], Any]) -> None:
        """*func* of each, one after the other."""
        async for element in self:
            await awaited(func(element))


def primes(limit: int) -> Stream:
    """The primes up to *limit*. Source: the chapter's ``PrimeStream``."""
    return Stream(number for number in range(2, limit + 1) if _is_prime(number))


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def countdown(start: int, pause: float = 0.1) -> Stream:
    """*start* down to 0, with a pause of so many seconds before each."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(start, -1, -1):
            await asyncio.sleep(pause)
            yield number

    return Stream(numbers())


def pages(fetch: Callable[[int], Any], per_page: int = 50, pause: float = 0.1) -> Stream:
    """The pages ``fetch(1)``, ``fetch(2)`` …, lists, with a pause of so many seconds between them.

    A page of fewer than *per_page* is the last one; an empty one ends the stream and is not delivered.
    """
    at_least_one("per_page", per_page)

    async def each() -> AsyncIterator[Any]:
        number = 1
        while page := await awaited(fetch(number)):
            yield page
            if len(page) < per_page:
                return
            await asyncio.sleep(pause)
            number += 1

    return Stream(each())


def _iterator(source: Source) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        return aiter(source)
    if isinstance(source, Iterable):
        return _each(iter(source))
    raise TypeError(f"a stream needs an iterable or an async iterable, not {type(source).__name__}")


async def _each(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    for element in iterator:
        yield element


async def _ticks(period: float) -> AsyncIterator[int]:
    clock = asyncio.get_running_loop().time
    began, tick = clock(), 0
    while True:
        wait = began + tick * period - clock()
        if wait > 0:
            await asyncio.sleep(wait)
        yield tick
        tick += 1
