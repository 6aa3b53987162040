"""The results of a batch handler, read where the handler runs: on a worker, or in this process."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from graft.tasks import codec
from graft.tasks.shared.limit import ATTRIBUTE
from graft.tasks.shared.turns import OfArgument

Handler = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class HandlerResults:
    """The results of a handler, and the error that cut it short; can be pickled whatever the error."""

    values: list[Any]
    error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.values, self.error and codec.dump_error(self.error))


def _opened(values: list[Any], error: bytes | None) -> HandlerResults:
    opened = error and codec.load_error(error)
    return HandlerResults(values, opened if isinstance(opened, Exception) else None)


def run_plain(handler: Handler, items: list[Any]) -> HandlerResults | Awaitable[HandlerResults]:
    """Call *handler*. Its results are read where it runs, because generators and mapping views cannot travel."""
    results = handler(items)
    return _read_later(results, len(items)) if inspect.isawaitable(results) else _read(results, len(items))


async def run_async(handler: Handler, items: list[Any]) -> HandlerResults:
    """:func:`run_plain` for a coroutine function, which runs in the io lane."""
    return _read(await handler(items), len(items))


for _function in (run_plain, run_async):
    setattr(_function, ATTRIBUTE, OfArgument(0))


async def _read_later(results: Awaitable[Iterable[Any]], count: int) -> HandlerResults:
    return _read(await results, count)


def _read(results: Iterable[Any], count: int) -> HandlerResults:
    values: list[Any] = []
    try:
        values.extend(itertools.islice(results, count))
    except Exception as error:
        return HandlerResults(values, error)
    return HandlerResults(values)
