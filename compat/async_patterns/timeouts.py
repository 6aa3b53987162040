"""Time limits for one item, for a request and its body, and for a whole batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from graft.compat.async_patterns.remote import Limit, on_workers
from graft.compat.local import awaited
from graft.compat.placement import Where
from graft.config.validation import seconds


class RequestTimeoutError(TimeoutError):
    """The request was not answered in time."""


class BodyTimeoutError(TimeoutError):
    """The request was answered, and its body did not arrive in time."""


async def request_with_timeouts(
    request: Callable[[], Any],
    read_body: Callable[[Any], Any],
    *,
    request_timeout: float = 10.0,
    body_timeout: float = 30.0,
) -> Any:
    """``read_body(request())``, each step with a limit and an error of its own."""
    response = await _within("request_timeout", request_timeout, request, RequestTimeoutError, "no answer")
    return await _within("body_timeout", body_timeout, lambda: read_body(response), BodyTimeoutError, "no body")


async def _within(name: str, timeout: float, step: Callable[[], Any], late: type[TimeoutError], what: str) -> Any:
    try:
        async with asyncio.timeout(seconds(name, timeout)) as limit:
            return await awaited(step())
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise late(f"{what} within {timeout:g} s") from error


async def batch_with_timeout(
    items: Iterable[Any],
    func: Callable[[Any], Any],
    total_timeout: float,
    item_timeout: float = 10.0,
    *,
    partial: bool = False,
    place: Where | None = None,
    limit: Limit | None = None,
) -> list[Any]:
    """*func* of each item, one after the other: an entry each, its value or its exception.

    An item that takes longer than *item_timeout* seconds is a TimeoutError, and the batch goes on. When the whole runs
    longer than *total_timeout*, the list is a single TimeoutError, as in the chapter; with ``partial=True`` it has the
    finished entries, then the error. On a worker the time limit ends plain functions, too; *limit* as for on_workers.

    Source: the chapter's ``batch_with_timeout``.
    """
    seconds("total_timeout", total_timeout)
    call = on_workers(
        func, limit=limit, timeout=seconds("item_timeout", item_timeout), place=place, call="batch_with_timeout"
    )
    entries: list[Any] = []
    try:
        async with asyncio.timeout(total_timeout) as whole:
            for item in items:
                try:
                    entries.append(await call(item))
                except Exception as error:
                    entries.append(error)
    except TimeoutError as error:
        if not whole.expired():
            raise
        late = TimeoutError(f"the batch ran longer than {total_timeout:g} s; {len(entries)} entries were finished")
        late.__cause__ = error
        return [*entries, late] if partial else [late]
    return entries
