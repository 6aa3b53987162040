"""Calls for the cluster as elements of a stream, stages of a pipeline, or whatever else takes an async function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from graft.compat import bridge
from graft.compat.async_patterns import polling
from graft.compat.async_patterns.limits import ConnectionPool, Semaphore
from graft.compat.async_patterns.rates import RateLimiter
from graft.compat.local import awaited
from graft.compat.placement import Where
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.ids import new_id
from graft.tasks.policy import RetryPolicy, as_policy
from graft.tasks.shared import limited_calls

Limit = Semaphore | ConnectionPool | RateLimiter


def on_workers(
    func: Callable[..., Any],
    *,
    limit: Limit | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: float | None = None,
    priority: float = 0,
    place: Where | None = None,
    call: str = "on_workers",
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """An async function that calls *func*, sync or async, on a worker and returns its value.

    ``Stream(ids).map(on_workers(fetch)).buffered(50)`` has at most 50 of these calls sent and unfinished.

    Args:
        limit: a semaphore, connection pool or rate limiter with a name. A call whose turn has not come goes back to
            the queue with a delay and keeps its place in line: it occupies no worker while it waits.
        retry: a RetryPolicy or a number of retries; none unless given. Waits for a turn are no retries.
        timeout: seconds one run may take.
        priority: larger goes first.
        place: "cluster" or "local" instead of what *func* would choose.
        call: this call's name in the call report.

    Raises:
        ValueError: *limit* has no name, so workers could not share it.
    """
    if limit is None:
        return functools.partial(
            bridge.call_async, func, call=call, retry=retry, timeout=timeout, priority=priority, place=place
        )
    if limit.name is None:
        raise ValueError("limit= must have a name, or the processes that run the calls could not share it")
    if limit.shared is None:
        return _limited_here(func, limit, retry, timeout, call)
    shared, policy = limit.shared, as_policy(retry)
    runner = limited_calls.run_async if inspect.iscoroutinefunction(func) else limited_calls.run

    async def send(*args: Any) -> Any:
        ticket = new_id()
        try:
            return await bridge.call_async(
                functools.partial(runner, func),
                shared,
                ticket,
                policy,
                *args,
                call=call,
                retry=limited_calls.AdmissionPolicy.around(policy),
                timeout=timeout,
                priority=priority,
                place=place,
                shown=func,
            )
        except BrokerUnavailable:
            raise
        except BaseException:
            polling.soon(limited_calls.withdraw, shared, ticket)  # Nobody shall wait behind a call that was given up.
            raise

    return send


def _limited_here(
    func: Callable[..., Any], limit: Limit, retry: RetryPolicy | int | None, timeout: float | None, call: str
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """In local mode the limit is this process's own."""

    async def run(*args: Any) -> Any:
        if isinstance(limit, RateLimiter):
            await limit.acquire()
            return await awaited(func(*args))
        async with limit.acquire():
            return await awaited(func(*args))

    async def send(*args: Any) -> Any:
        return await bridge.call_async(run, *args, call=call, retry=retry, timeout=timeout, place="local", shown=func)

    return send
