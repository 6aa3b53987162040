"""What a batch handler answers, read where the handler runs: on a worker, or with the caller."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graft.tasks import codec

Handler = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Answers:
    """What a handler answered, and the error that cut it short; a pickle of it survives any error."""

    values: list[Any]
    error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.values, self.error and codec.dump_error(self.error))


def _opened(values: list[Any], error: bytes | None) -> Answers:
    opened = error and codec.load_error(error)
    return Answers(values, opened if isinstance(opened, Exception) else None)


def answered_plain(handler: Handler, items: list[Any]) -> Answers | Awaitable[Answers]:
    """The answers of *handler*, read where it runs: generators and views of a mapping cannot travel."""
    answers = handler(items)
    return _read_later(answers, len(items)) if inspect.isawaitable(answers) else _read(answers, len(items))


async def answered_async(handler: Handler, items: list[Any]) -> Answers:
    """The same for a coroutine function, for the lane of those."""
    return _read(await handler(items), len(items))


async def _read_later(answers: Awaitable[Iterable[Any]], count: int) -> Answers:
    return _read(await answers, count)


def _read(answers: Iterable[Any], count: int) -> Answers:
    values: list[Any] = []
    try:
        values.extend(itertools.islice(answers, count))
    except Exception as error:
        return Answers(values, error)
    return Answers(values)
