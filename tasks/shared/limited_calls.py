"""Runs a function on a worker under a limit that all processes share, without occupying the worker while it waits.

A call whose turn has not come raises :class:`NotYet`, which its policy answers with a delay: the message goes back to
the queue and keeps its ticket, and with it its turn.

    caller ── ticket, limit ──► worker: limit.acquire(ticket) ── a permit ──► func(*args), permit released
                                  ▲            └ NotYet(wait) ─┐
                                  └──── queue, after wait ◄────┘
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from graft.config.deployment import part
from graft.config.keys import SHARED
from graft.config.redis_client import server_time, shared
from graft.tasks import blocking_threads
from graft.tasks.errors import BrokerUnavailable, NotYet
from graft.tasks.policy import FailedRun, RetryPolicy
from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.primitive import KEPT, outage_is_unavailable
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger(__name__)

SharedLimit = SharedSemaphore | SharedRateLimiter

POLL: Final = 0.1  # Seconds that a permit is taken to be held for, at least, until one has been given back.
IN_PLACE: Final = 1.0  # A coroutine waits for a turn that is nearer without leaving its event loop.
SOONEST_POLL: Final = 0.02
SLOWEST_POLL: Final = 5.0
PATIENCE: Final = 90.0  # A message may wait behind others, or for its lost worker, before its turn is given up.


class HoldTimes:
    """How long calls hold a permit of each semaphore, as far as this process has seen: seconds, a moving mean."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._means: dict[str, float] = {}
        self._asked: dict[str, float] = {}  # When the first call had to wait that nobody has given a permit back since.

    def begin(self, ticket: str) -> None:
        self._began[ticket] = time.monotonic()

    def end(self, limit: SharedSemaphore, ticket: str) -> None:
        began = self._began.pop(ticket, None)
        if began is not None:
            seconds = time.monotonic() - began
            mean = self._means.get(limit.name, seconds)
            self._means[limit.name] = 0.8 * mean + 0.2 * seconds
            self._asked.pop(limit.name, None)

    def until(self, limit: SharedSemaphore, ahead: int) -> float:
        """Seconds until it may be the turn of a call that has *ahead* permits before it."""
        now = time.monotonic()
        passed = now - self._asked.setdefault(limit.name, now)  # They are held for longer than that.
        mean = max(self._means.get(limit.name, POLL), passed)
        return min(max(mean * ahead / limit.limit, SOONEST_POLL), SLOWEST_POLL)


@dataclass(frozen=True)
class AdmissionPolicy(RetryPolicy):
    """Waits for a turn as long as it takes. Failures of the function itself were judged by :func:`run` already."""

    def wait_after(self, run: int, error: BaseException) -> float | None:
        return error.wait if isinstance(error, NotYet) else None

    @classmethod
    def around(cls, policy: RetryPolicy) -> AdmissionPolicy:
        """Counts as *policy* does where a dead letter is concerned."""
        return cls(policy.runs)


def run(func: Callable[..., Any], limit: SharedLimit, ticket: str, policy: RetryPolicy, *args: Any) -> Any:
    """``func(*args)`` once *limit* admits *ticket*; the result may be an awaitable.

    Raises:
        NotYet: *limit* does not yet, or *func* raised and *policy* lets it run again.
    """
    if not in_worker():
        return run_async(func, limit, ticket, policy, *args)  # On the caller's event loop, which must not block.
    admit(limit, ticket)
    try:
        value = func(*args)
    except BaseException as error:
        release(limit, ticket)
        _raise_if_not_yet(policy, ticket, error, func)
        raise
    if inspect.isawaitable(value):
        return _finish(value, limit, ticket, policy, func)
    release(limit, ticket)
    return value


async def run_async(func: Callable[..., Any], limit: SharedLimit, ticket: str, policy: RetryPolicy, *args: Any) -> Any:
    """The same for a coroutine function."""
    await _admit_soon(limit, ticket)
    try:
        value = func(*args)
        if inspect.isawaitable(value):
            value = await value
    except BaseException as error:
        await blocking_threads.ask(release, limit, ticket)
        await blocking_threads.ask(_raise_if_not_yet, policy, ticket, error, func)
        raise
    await blocking_threads.ask(release, limit, ticket)
    return value


async def _finish(
    value: Awaitable[Any], limit: SharedLimit, ticket: str, policy: RetryPolicy, func: Callable[..., Any]
) -> Any:
    try:
        result = await value
    except BaseException as error:
        await blocking_threads.ask(release, limit, ticket)
        await blocking_threads.ask(_raise_if_not_yet, policy, ticket, error, func)
        raise
    await blocking_threads.ask(release, limit, ticket)
    return result


def admit(limit: SharedLimit, ticket: str) -> None:
    """Have *limit* admit *ticket*, or raise NotYet with the time to wait; the ticket keeps its turn."""
    try:
        wait = _wait_for(limit, ticket)
        if wait <= 0 and isinstance(limit, SharedRateLimiter):
            limit.used(ticket)
    except BrokerUnavailable as error:
        raise NotYet(1.0) from error  # Redis's trouble is not the task's.
    if wait > 0:
        raise NotYet(wait)


async def _admit_soon(limit: SharedLimit, ticket: str) -> None:
    """The same for a coroutine, which waits here for a turn that is near: to send it back would take as long."""
    while True:
        try:
            return await blocking_threads.ask(admit, limit, ticket)
        except NotYet as not_yet:
            if not_yet.wait > IN_PLACE:
                raise
            wait = not_yet.wait
        await asyncio.sleep(wait)


def _wait_for(limit: SharedLimit, ticket: str) -> float:
    if isinstance(limit, SharedRateLimiter):
        return limit.book(ticket)
    admission = limit.acquire(ticket, PATIENCE)
    if not admission.slot:
        return part(HoldTimes).until(limit, admission.ahead)
    part(HoldTimes).begin(ticket)
    lease_renewer().keep(ticket, lambda: limit.renew(ticket), limit.lease / 3)
    return 0.0


def release(limit: SharedLimit, ticket: str) -> None:
    """Let the next one pass. When Redis does not answer, the lease runs out."""
    if isinstance(limit, SharedSemaphore):
        lease_renewer().drop(ticket)
        part(HoldTimes).end(limit, ticket)
        try:
            limit.release(ticket)
        except BrokerUnavailable as error:
            logger.warning("the permit %s will expire by itself: %s", ticket, error)


def withdraw(limit: SharedLimit, ticket: str) -> None:
    """The caller no longer wants the call: others need not wait for it."""
    if isinstance(limit, SharedSemaphore):
        limit.withdraw(ticket)
    else:
        limit.cancel(ticket)


def _raise_if_not_yet(policy: RetryPolicy, ticket: str, error: BaseException, func: Callable[..., Any]) -> None:
    """Raise NotYet when *policy* lets *func*, which failed, run again; waits for a turn do not count as runs."""
    if policy.runs <= 1:
        return
    key, since_key = f"{SHARED}runs:{ticket}:failed", f"{SHARED}runs:{ticket}:since"
    elapsed = 0.0
    with outage_is_unavailable():
        with shared().pipeline() as pipe:
            failed, _ = pipe.incr(key).expire(key, KEPT).execute()
        if policy.max_seconds is not None:
            now = server_time(shared())
            with shared().pipeline() as pipe:
                _, since = pipe.set(since_key, now, ex=KEPT, nx=True).get(since_key).execute()
            elapsed = now - float(since)
    wait = policy.next_wait(failed, error, elapsed)
    if wait is not None:
        name = f"{func.__module__}:{getattr(func, '__qualname__', func)}"
        policy.note(FailedRun(name, failed, policy.runs, error, wait, ticket))
        raise NotYet(wait) from error
