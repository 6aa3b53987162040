"""Has limits admit a call, and gives back what it held; a call that may not begin learns when to ask again.

    turns ──► enter ─┬─ None       all have admitted it: it runs ──► leave(error)   breakers are told, permits released
                     └─ Refusal    none holds anything for it: its message goes back to the queue for ``wait`` seconds

A ticket keeps its place in a line while it is away, and a call whose process died comes back to its own permit.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from celery.exceptions import TaskPredicate

from graft.config.deployment import part
from graft.tasks import blocking_threads, worker_runtime
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, NotYet, PermanentError
from graft.tasks.shared.circuit_breaker import SharedBreaker
from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.limit_events import LimitCounts, LimitEvent, tell
from graft.tasks.shared.primitive import DifferentLimitsError
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.rate_window import SharedRate
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.shared.turns import Turn, turns_of

logger = logging.getLogger(__name__)

NEAR: Final = 0.1  # A plain call waits in its pool process for a turn that is nearer: to go back would take as long.
OUTAGE: Final = 1.0  # Seconds until a call asks again when Redis did not answer,
DISPUTE: Final = 5.0  # or when workers of another release use the name with other limits.


@dataclass(frozen=True)
class Refusal:
    """The call may not begin now: *turn* has not come, and is to be asked for again in *wait* seconds."""

    turn: Turn
    wait: float

    def error(self) -> NotYet:
        return NotYet(self.wait, str(self.turn))


def enter(asked: Sequence[Turn]) -> Refusal | None:
    """Ask for all of *asked*; None if the call may begin, which then holds them, else the first that is refused.

    Raises:
        DifferentLimitsError: another process uses the name of a caller's own primitive with other limits.
    """
    passed: list[Turn] = []
    try:
        for turn in asked:
            wait = _wait_for(turn)
            if wait > 0:
                _undo(passed)
                return Refusal(turn, wait)
            passed.append(turn)
    except BaseException:
        _undo(passed)
        raise
    _count(asked)
    return None


def _wait_for(turn: Turn) -> float:
    try:
        return _asked(turn)
    except BrokerUnavailable:
        return OUTAGE  # Redis's trouble is not the call's.
    except DifferentLimitsError as error:
        if turn.limit is None:
            raise
        logger.error("%s; the item waits. Workers of an earlier release may still run", error)
        return DISPUTE


def _asked(turn: Turn) -> float:
    match turn.primitive:
        case SharedBreaker() as breaker:
            wait, change = breaker.ask()
            if change is not None:
                _tell(turn, change)
            return wait * random.uniform(1.0, 1.1)  # A little apart: all wait for the same moment.
        case SharedRate() as rate:
            return rate.take(turn.ticket)
        case SharedRateLimiter() as limiter:
            wait = limiter.book(turn.ticket)
            if wait <= 0:
                limiter.used(turn.ticket)
            return wait
        case SharedSemaphore() as semaphore:
            admission = semaphore.acquire(turn.ticket, 0)
            if not admission.slot:
                return admission.wait
            lease_renewer().keep(turn.ticket, lambda: semaphore.renew(turn.ticket), semaphore.lease / 3)
            return 0.0


def _count(asked: Sequence[Turn]) -> None:
    seen = set()
    for turn in asked:
        if turn.limit is not None and turn.limit not in seen:
            seen.add(turn.limit)
            _note_use(turn)
            part(LimitCounts).count(turn.limit.name, "items", "admitted")


def _note_use(turn: Turn) -> None:
    limit = turn.limit
    if limit is not None:
        part(LimitCounts).used(limit.name, str(limit), ",".join(limit.kinds), [turn.primitive.name])


def abandon(held: Sequence[Turn]) -> None:
    """The call has not begun, or was ended from outside."""
    leave(held, _Abandoned())


def leave(held: Sequence[Turn], error: BaseException | None) -> None:
    """The call has ended, with *error* or without one."""
    for turn in held:
        match turn.primitive:
            case SharedBreaker():
                _record(turn, error)
            case SharedSemaphore():
                release(turn)


def release(turn: Turn) -> None:
    """Give a permit back, so that the next one passes. When Redis does not answer, its lease runs out."""
    semaphore, ticket = turn.primitive, turn.ticket
    if not isinstance(semaphore, SharedSemaphore):
        return
    lease_renewer().drop(ticket)
    try:
        semaphore.release(ticket)
    except BrokerUnavailable as error:
        logger.warning("the permit %s will expire by itself: %s", ticket, error)


def _record(turn: Turn, error: BaseException | None) -> None:
    """Tell a breaker how the call ended. Errors that say that the input is bad, and ends from outside, say nothing."""
    breaker = turn.primitive
    assert isinstance(breaker, SharedBreaker)
    is_outside = error is not None and (
        isinstance(error, PermanentError | CancelledBatchError) or not isinstance(error, Exception)
    )
    try:
        change = breaker.record("abandoned" if is_outside else "failed" if error is not None else "succeeded")
    except BrokerUnavailable as outage:
        logger.warning("%s was not told how a call ended: %s", turn, outage)
        return
    if change is not None:
        _tell(turn, change, error)


def _tell(turn: Turn, change: str, error: BaseException | None = None) -> None:
    limit = turn.limit
    if limit is None or limit.breaker is None:
        return
    what: Any = "opened" if change == "open" else change
    wait = limit.breaker.timeout if change == "open" else 0.0
    tell(LimitEvent(limit.name, "breaker", what, turn.key, wait=wait, error=error), limit.on_event)


def tell_postponed(refusals: Sequence[Refusal]) -> None:
    """Log, count and tell the hooks that items wait, together those that wait for the same."""
    found: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        found.setdefault(refusal.turn.primitive.prefix, []).append(refusal)
    for alike in found.values():
        turn, limit = alike[0].turn, alike[0].turn.limit
        if limit is not None:
            _note_use(turn)
            wait = min(refusal.wait for refusal in alike)
            tell(LimitEvent(limit.name, turn.kind, "postponed", turn.key, len(alike), wait), limit.on_event)


def _undo(passed: Sequence[Turn]) -> None:
    """A later turn was refused: the call does not begin. A token of a rate comes last, and is not given back."""
    abandon(passed[::-1])


class _Abandoned(BaseException):
    """Stands for the end of a call that has not begun."""


def withdraw(asked: Sequence[Turn]) -> None:
    """The call is no longer wanted: others need not wait for it."""
    for turn in asked:
        match turn.primitive:
            case SharedSemaphore() | SharedRate() as waited:
                waited.withdraw(turn.ticket)
            case SharedRateLimiter() as limiter:
                limiter.cancel(turn.ticket)


def run(
    call: Callable[..., Any], limited: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], ticket: str
) -> Any:
    """``call(*args, **kwargs)`` under the limits of *limited*, for a task that is no envelope.

    Raises:
        NotYet: its turn has not come.
    """
    source = turns_of(limited)
    if source is None:
        return call(*args, **kwargs)
    held = source.turns(args, kwargs, ticket)
    refusal: Refusal | None = worker_runtime.off_loop(enter, held)
    until = time.monotonic() + NEAR
    while refusal is not None and time.monotonic() + refusal.wait <= until:
        worker_runtime.pause(refusal.wait)
        refusal = worker_runtime.off_loop(enter, held)
    if refusal is not None:
        worker_runtime.off_loop(tell_postponed, [refusal])
        raise refusal.error()
    try:
        value = call(*args, **kwargs)
    except Exception as error:
        worker_runtime.off_loop(leave, held, as_failure(error))
        raise
    except BaseException:  # The end of this run, or of the worker: nobody can wait now.
        blocking_threads.soon(abandon, held)
        raise
    worker_runtime.off_loop(leave, held, None)
    return value


async def enter_on_loop(asked: Sequence[Turn]) -> Refusal | None:
    """The same as :func:`enter`, for coroutines. What is given to one that was cancelled meanwhile is given back."""
    asking: Future[Refusal | None] = Future()

    def ask() -> None:
        try:
            asking.set_result(enter(asked))
        except BaseException as error:
            asking.set_exception(error)

    blocking_threads.soon(ask)
    try:
        return await asyncio.shield(asyncio.wrap_future(asking))
    except asyncio.CancelledError:
        asking.add_done_callback(partial(_give_back, asked))
        raise


def _give_back(asked: Sequence[Turn], asking: Future[Refusal | None]) -> None:
    if asking.exception() is None and asking.result() is None:
        abandon(asked)


def as_failure(answer: BaseException) -> BaseException:
    """What a breaker is to be told of a task that raised *answer*: of a retry that Celery was asked for, its reason."""
    if not isinstance(answer, TaskPredicate):
        return answer
    reason = getattr(answer, "exc", None)
    return reason if isinstance(reason, BaseException) else _Abandoned()
