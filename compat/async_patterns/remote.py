"""Calls on workers as async functions: for the elements of a stream, or the stages of a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any, Unpack

from graft.compat import bridge
from graft.compat.async_patterns import polling
from graft.compat.async_patterns.limits import ConnectionPool, RateLimiter, Semaphore
from graft.compat.local import awaited
from graft.compat.placement import CallOptions
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.ids import new_id
from graft.tasks.shared import limited_calls

Limit = Semaphore | ConnectionPool | RateLimiter


def on_workers(
    func: Callable[..., Any], *, limit: Limit | None = None, call: str = "on_workers", **options: Unpack[CallOptions]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """An async function that calls *func*, sync or async, on a worker and returns its value.

    ``Stream(ids).map(on_workers(fetch)).buffered(50)`` has at most 50 of these calls sent and unfinished.

    Args:
        limit: a semaphore, connection pool or rate limiter with a name. A call that has no permit yet goes back to the
            queue with a delay, and asks the more often the longer it has waited: it occupies no worker meanwhile. A
            coroutine whose turn seems less than a second away waits for it on its event loop instead.
        call: this call's name in the call report.
        options: ``place``, ``retry``, ``timeout`` and ``priority``, see :class:`CallOptions`. Waits for a permit are
            no retries.

    Raises:
        ValueError: *limit* has no name, so workers could not share it.
    """
    if limit is None:
        return functools.partial(bridge.call_async, func, call=call, **options)
    if limit.name is None:
        raise ValueError("limit= must have a name, or the processes that run the calls could not share it")
    if limit.shared is None:
        options["place"] = "local"
        return functools.partial(bridge.call_async, _limited_here(func, limit), call=call, shown=func, **options)
    shared = limit.shared
    runner = functools.partial(limited_calls.run_async if iscoroutinefunction(func) else limited_calls.run, func)

    async def send(*args: Any) -> Any:
        ticket = new_id()
        try:
            return await bridge.call_async(runner, shared, ticket, *args, call=call, shown=func, **options)
        except BrokerUnavailable:
            raise
        except BaseException:
            polling.soon(limited_calls.withdraw, shared, ticket)  # Other calls must not wait behind an abandoned one.
            raise

    return send


def _limited_here(func: Callable[..., Any], limit: Limit) -> Callable[..., Coroutine[Any, Any, Any]]:
    """In local mode the limit is that of this process."""

    async def run(*args: Any) -> Any:
        if isinstance(limit, RateLimiter):
            await limit.acquire()
            return await awaited(func(*args))
        async with limit.acquire():
            return await awaited(func(*args))

    return run
