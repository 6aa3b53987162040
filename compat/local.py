"""Calls that run in this process, on the caller's own event loop, with the bounds that the old module had."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from graft.tasks.callables.importable import name_of
from graft.tasks.errors import ItemTimeoutError
from graft.tasks.policy import FailedRun, RetryPolicy


async def awaited(value: Any) -> Any:
    """*value*, or the result of awaiting it: functions may be plain or async."""
    return await value if inspect.isawaitable(value) else value


async def awaited_within(timeout: float | None, value: Awaitable[Any]) -> Any:
    """The result of *value*.

    Raises:
        ItemTimeoutError: it took longer than *timeout* seconds.
    """
    try:
        async with asyncio.timeout(timeout) as limit:
            return await value
    except TimeoutError as error:
        if limit.expired():
            raise ItemTimeoutError(f"the item ran longer than its limit of {timeout:g} s") from error
        raise


async def map_items(
    func: Callable[[Any], Any],
    items: Sequence[Any],
    concurrency: int,
    in_flight: int,
    policy: RetryPolicy,
    timeout: float | None,
) -> list[Any]:
    """*func* of every item, in batches of *concurrency*, at most *in_flight* of them at once; values in order."""
    free = asyncio.Semaphore(in_flight)

    async def batch(start: int) -> list[Any]:
        async with free:
            part = items[start : start + concurrency]
            return await asyncio.gather(*(call(func, (item,), policy, timeout) for item in part))

    # Not a TaskGroup: after the first error the other items run on, as they always did.
    parts = await asyncio.gather(*(batch(start) for start in range(0, len(items), concurrency)))
    return [value for part in parts for value in part]


async def call(func: Callable[..., Any], args: Sequence[Any], policy: RetryPolicy, timeout: float | None) -> Any:
    """``func(*args)``, called again after an error as *policy* says."""
    run, began = 0, time.monotonic()
    while True:
        run += 1
        try:
            return await awaited_within(timeout, awaited(func(*args)))
        except Exception as error:
            wait = policy.next_wait(run, error, time.monotonic() - began)
            if wait is None:
                raise
            policy.note(FailedRun(name_of(func), run, policy.runs, error, wait))
        await asyncio.sleep(wait)
