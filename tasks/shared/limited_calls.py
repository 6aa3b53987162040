"""Calls under a primitive that their caller has made himself: ``on_workers(func, limit=Semaphore(20, name="x"))``.

The primitive and the call's ticket travel as its first arguments, and a worker asks for them as for any limit
(admission.py). The caller knows the ticket, so he can give the call's turn up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graft.tasks import blocking_threads
from graft.tasks.shared import admission
from graft.tasks.shared.limit import ATTRIBUTE
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.shared.turns import Turn, turns_of
from graft.tasks.worker_runtime import in_worker, resolved

SharedLimit = SharedSemaphore | SharedRateLimiter


class _FirstArguments:
    """Finds the turn in the arguments of :func:`run` and :func:`run_async`."""

    def turns(self, args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str) -> list[Turn]:
        func, limit, own_ticket, *rest = args
        inner, own = turns_of(func), [Turn(limit, own_ticket)]
        others = [] if inner is None else inner.turns(rest, kwargs, ticket)
        return [*others, *own] if isinstance(limit, SharedRateLimiter) else [*own, *others]


def run(func: Callable[..., Any], limit: SharedLimit, ticket: str, *args: Any) -> Any:
    """``func(*args)``, once the worker has been admitted; the result may be an awaitable."""
    if not in_worker():
        return _run_here(func, limit, ticket, args)
    return func(*args)


async def run_async(func: Callable[..., Any], limit: SharedLimit, ticket: str, *args: Any) -> Any:
    """The same for a coroutine function."""
    if not in_worker():
        return await _run_here(func, limit, ticket, args)
    return await resolved(func(*args))


async def _run_here(func: Callable[..., Any], limit: SharedLimit, ticket: str, args: Sequence[Any]) -> Any:
    """In the caller's process, on its event loop: there is no queue to wait in."""
    turns = [Turn(limit, ticket)]
    refusal = await admission.enter_on_loop(turns)
    while refusal is not None:
        await asyncio.sleep(refusal.wait)
        refusal = await admission.enter_on_loop(turns)
    try:
        return await resolved(func(*args))
    finally:
        await asyncio.shield(blocking_threads.ask(admission.leave, turns, None))


for _function in (run, run_async):
    setattr(_function, ATTRIBUTE, _FirstArguments())


def withdraw(limit: SharedLimit, ticket: str) -> None:
    """The caller no longer wants the call: others need not wait for it."""
    admission.withdraw([Turn(limit, ticket)])
