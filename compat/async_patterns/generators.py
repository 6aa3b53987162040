"""The chapter's generators: primes, a countdown, and pages of something that is read page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from graft.compat.async_patterns.streams import Stream
from graft.compat.local import awaited
from graft.config.validation import at_least_one


def primes(limit: int) -> Stream:
    """The primes up to *limit*."""
    return Stream(number for number in range(2, limit + 1) if all(number % each for each in range(2, number)))


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
