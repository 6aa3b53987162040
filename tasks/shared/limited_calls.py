"""Runs a function on a worker under a limit that all processes share, without occupying the worker while it waits.

A call whose turn has not come raises :class:`NotYet`, which its policy answers with a delay: the message goes back to
the queue and keeps its ticket, which is its place in line.

    caller ── ticket, guard ──► worker: guard.take(ticket) ── a permit ──► func(*args), permit given back
                                  ▲           └ NotYet(wait) ─┐
                                  └──── queue, after wait ◄───┘
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from graft.tasks import blocking_threads
from graft.tasks.errors import BrokerUnavailable, NotYet
from graft.tasks.policy import RetryPolicy
from graft.tasks.shared import lua
from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger(__name__)

Guard = SharedSemaphore | SharedRateLimiter

LOOK: Final = 0.1  # Seconds between two looks of the first in line; those behind it look less often …
LOOK_AT_LEAST: Final = 5.0  # … but this often.
PATIENCE: Final = 90.0  # A message may wait behind others, or for its lost worker, before its place is given up.


@dataclass(frozen=True)
class Patient(RetryPolicy):
    """Waits for a turn as long as it takes. Failures of the function itself were judged by :func:`run` already."""

    def wait_after(self, run: int, error: BaseException) -> float | None:
        return error.wait if isinstance(error, NotYet) else None

    @classmethod
    def around(cls, policy: RetryPolicy) -> Patient:
        """Counts as *policy* does where a dead letter is concerned."""
        return cls(policy.runs, policy.base, policy.ceiling)


def run(func: Callable[..., Any], guard: Guard, ticket: str, policy: RetryPolicy, *args: Any) -> Any:
    """``func(*args)`` once *guard* lets *ticket* pass; the result may be an awaitable.

    Raises:
        NotYet: it does not yet, or *func* raised and *policy* lets it run again.
    """
    if not in_worker():
        return run_async(func, guard, ticket, policy, *args)  # On the caller's event loop, which must not block.
    enter(guard, ticket)
    try:
        value = func(*args)
    except BaseException as error:
        leave(guard, ticket)
        _judge(policy, ticket, error)
        raise
    if inspect.isawaitable(value):
        return _finish(value, guard, ticket, policy)
    leave(guard, ticket)
    return value


async def run_async(func: Callable[..., Any], guard: Guard, ticket: str, policy: RetryPolicy, *args: Any) -> Any:
    """The same for a coroutine function."""
    await blocking_threads.ask(enter, guard, ticket)
    try:
        value = func(*args)
        if inspect.isawaitable(value):
            value = await value
    except BaseException as error:
        await blocking_threads.ask(leave, guard, ticket)
        await blocking_threads.ask(_judge, policy, ticket, error)
        raise
    await blocking_threads.ask(leave, guard, ticket)
    return value


async def _finish(value: Awaitable[Any], guard: Guard, ticket: str, policy: RetryPolicy) -> Any:
    try:
        result = await value
    except BaseException as error:
        await blocking_threads.ask(leave, guard, ticket)
        await blocking_threads.ask(_judge, policy, ticket, error)
        raise
    await blocking_threads.ask(leave, guard, ticket)
    return result


def enter(guard: Guard, ticket: str) -> None:
    """Pass *guard*, or raise NotYet with the time to wait; the place in line is kept."""
    try:
        wait = _wait_for(guard, ticket)
        if wait <= 0 and isinstance(guard, SharedRateLimiter):
            guard.used(ticket)
    except BrokerUnavailable as error:
        raise NotYet(1.0) from error  # Redis's trouble is not the task's.
    if wait > 0:
        raise NotYet(wait)


def _wait_for(guard: Guard, ticket: str) -> float:
    if isinstance(guard, SharedRateLimiter):
        return guard.book(ticket)
    answer = guard.take(ticket, PATIENCE)
    if not answer.slot:
        return min(LOOK * answer.ahead, LOOK_AT_LEAST)
    lease_renewer().keep(ticket, lambda: guard.renew(ticket), guard.lease / 3)
    return 0.0


def leave(guard: Guard, ticket: str) -> None:
    """Let the next one pass. When Redis does not answer, the lease runs out."""
    if isinstance(guard, SharedSemaphore):
        lease_renewer().drop(ticket)
        try:
            guard.leave(ticket)
        except BrokerUnavailable as error:
            logger.warning("the permit %s will expire by itself: %s", ticket, error)


def withdraw(guard: Guard, ticket: str) -> None:
    """The caller no longer wants the call: others need not wait for it."""
    if isinstance(guard, SharedSemaphore):
        guard.withdraw(ticket)
    else:
        guard.cancel(ticket)


def _judge(policy: RetryPolicy, ticket: str, error: BaseException) -> None:
    """Raise NotYet when *policy* lets a function that failed run again; waits for a turn are no runs."""
    if policy.runs <= 1:
        return
    (key,) = lua.keys("runs", ticket, "failed")
    script = f"redis.call('EXPIRE', KEYS[1], {lua.KEPT}) return n"
    failed = int(lua.run(f"local n = redis.call('INCR', KEYS[1]) {script}", [key]))
    wait = policy.wait_after(failed, error)
    if wait is not None:
        raise NotYet(wait) from error
