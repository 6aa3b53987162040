"""What every task gets in a worker, whatever its class: runs are counted, killers isolated, failures kept.

    run counted ─► cancelled? dead? ─► limits ─► run ─┬─ value
                                         │            ├─ Retry, Ignore, Reject   Celery's answers, passed on
                                         │            └─ error ─► the policy's next run, or a dead letter ─► FAILURE
                                         └─ not yet ─► back to the queue, for later

A task opts out, or chooses, by options: ``graft_guard=False``, ``graft_run_limit=5``, ``graft_letters=True``.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Final

import redis
from billiard.common import terminate_handler_fired
from celery import Task
from celery.backends.redis import RedisBackend
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate

from graft.config.deployment import settings
from graft.config.redis_client import server_time, shared
from graft.config.transport.unique import Terms
from graft.tasks import worker_runtime
from graft.tasks.base import raise_postponed, raise_retry
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import lease, poison_isolation
from graft.tasks.delivery.run_counter import Delivery, Runs, asks_redis, delivery_of, is_redelivered, was_returned
from graft.tasks.errors import NotYet, OutOfMemoryError, PoisonedError, ProcessExitError
from graft.tasks.policy import FailedRun, RetryPolicy
from graft.tasks.queues import overlap, unique
from graft.tasks.results import attempts, entry_results
from graft.tasks.shared import admission

logger = logging.getLogger(__name__)

UPKEEP: Final = ("graft.health.", "graft.history.", "graft.leaks.", "graft.maintenance.")  # Nobody asks how these went.
SINCE: Final = "graft_since"  # The header that says when the first run began, by Redis's clock.
RUNS_CODE: Final = frozenset({"celery.map", "celery.starmap", "celery.chunks"})  # Of Celery's own tasks.


def is_guarded(task: Any) -> bool:
    """Whether *task* is to be guarded: every task but Celery's own upkeep, and those that opt out."""
    if task.name.startswith("celery.") and task.name not in RUNS_CODE:
        return False
    return bool(getattr(task, "graft_guard", True))


def guarded(task: Task, run: Callable[..., Any]) -> Callable[..., Any]:
    """*run*, which is the task's, with all of this for a run that a worker has been sent."""

    @wraps(run)
    def run_guarded(*args: Any, **kwargs: Any) -> Any:
        request = task.request_stack.top
        if request is None or request.called_directly or request.is_eager or getattr(request, "graft_guarded", False):
            return run(*args, **kwargs)
        request.graft_guarded = True
        request.graft_began = time.monotonic()
        with isolated_if_poisonous(request.id):
            return _run_counted(task, request, run, args, kwargs)

    return run_guarded


@contextmanager
def isolated_if_poisonous(task_id: str) -> Iterator[None]:
    """A task one crash away from its limit begins only while no other such runs here; else it goes back."""
    try:
        yield
    except poison_isolation.NotAloneError as error:
        worker_runtime.pause(poison_isolation.WAIT)
        raise Reject(error, requeue=True) from error
    except BaseException:
        poison_isolation.leave(task_id)
        raise
    poison_isolation.leave(task_id)


def _run_counted(
    task: Any, request: Any, run: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    record = Runs(request.id, request.retries or 0, delivery=delivery_of(request))
    limit = getattr(task, "graft_run_limit", None) or settings().run_limit
    _refuse_if_lost(task, request)  # It may have waited here for longer than its lease held.
    try:
        delivery = _begun(record, request, limit)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise Reject(error, requeue=True) from error  # Nothing has begun.
    began = time.monotonic()
    lease.hold(request, task.acks_late)
    try:
        if delivery.cancelled:
            worker_runtime.off_loop(_note_cancelled, task, request)
            raise Ignore("cancelled before it ran")
        if not worker_runtime.off_loop(unique.may_begin, request):
            worker_runtime.off_loop(_note_cancelled, task, request, "another call has its unique key")
            raise Ignore("replaced before it ran")
        if delivery.is_dead(0, limit):
            raise PoisonedError(f"{task.name} took {delivery.run - 1} worker processes with it")
        value = admission.run(run, run, args, kwargs, request.id)
        _refuse_if_lost(task, request)
        if was_returned(request):  # A run before may have buried it. Only now: until here its letter was true.
            worker_runtime.off_loop(dead_letters.take_back, request.id)
        return value
    except NotYet as error:  # The task has not begun.
        _refuse_if_lost(task, request)
        raise_postponed(task, error.wait, error)
    except TaskPredicate:  # Retry, Ignore and Reject are answers, not failures.
        raise
    except Exception as error:
        _refuse_if_lost(task, request)
        failure = _failed(task, request, error)
        if failure is error:
            raise
        raise failure from error
    except (SystemExit, KeyboardInterrupt) as error:
        if terminate_handler_fired():
            raise  # The worker ends this process.
        exits = ProcessExitError(f"the task tried to end the worker: {type(error).__name__}({error})")
        raise _failed(task, request, exits) from error
    finally:
        # This process has survived the run, however that ended.
        _note_attempt(task.name, request, delivery.run, time.monotonic() - began, sys.exc_info()[1])
        _close(task, record, request, sys.exc_info()[1])


def _note_attempt(name: str, request: Any, run: int, seconds: float, answer: BaseException | None) -> None:
    if not name.startswith(UPKEEP):
        attempts.note(request, answer, run=(request.retries or 0) + run, seconds=seconds, name=name)


def _refuse_if_lost(task: Any, request: Any) -> None:
    """Raises LeaseLost. A task that is acknowledged before it runs has no lease."""
    if task.acks_late and not lease.is_certain():
        worker_runtime.off_loop(lease.refuse_if_lost, request)


def _failed(task: Any, request: Any, error: Exception) -> Exception:
    """The error to raise for *error*, its letter kept. Raises Retry where the task's policy has another run."""
    request.graft_failed = True  # Others need not keep a letter.
    run = (request.retries or 0) + 1
    policy = getattr(task, "policy", None)
    if isinstance(policy, RetryPolicy):
        _raise_if_retried(task, request, policy, run, error)
    if isinstance(error, MemoryError):  # Celery's worker would end (5.7, Request.on_failure).
        error = OutOfMemoryError(f"{task.name} ran out of memory. {error}".rstrip())
    reason = letter_reason(task, request, error)
    if reason is not None:
        # First: whoever reads FAILURE must find the letter.
        try:
            worker_runtime.off_loop(bury, task, request, error, reason, run)
        except redis.RedisError as outage:
            if task.acks_late:  # It goes back rather than fail without its letter.
                raise Reject(outage, requeue=True) from error
            note_unkept(request, outage)
    return error


def _raise_if_retried(task: Any, request: Any, policy: RetryPolicy, run: int, error: Exception) -> None:
    """Raise Retry where *policy* has another run."""
    headers, elapsed = {}, 0.0
    if policy.max_seconds is not None:
        now = worker_runtime.off_loop(server_time, shared())
        since = float((request.headers or {}).get(SINCE) or now - (time.monotonic() - request.graft_began))
        headers, elapsed = {SINCE: since}, now - since
    wait = policy.next_wait(run, error, elapsed)
    if wait is not None:
        policy.note(FailedRun(task.name, run, policy.runs, error, wait, request.id))
        options = {"headers": {**(request.headers or {}), **headers}} if headers else {}
        raise_retry(task, countdown=wait, exc=error, max_retries=policy.runs, **options)


def letter_reason(task: Any, request: Any, error: BaseException) -> dead_letters.Reason | None:
    """Why the last failure of *task* is kept, None where it is not: its own option, or the deployment's rules."""
    if isinstance(error, PoisonedError):
        return "poisoned"
    if isinstance(error, tuple(task.throws or ())):
        return None  # Expected: the task says so.
    asked = getattr(task, "graft_letters", None)
    if asked is not None:
        return "retries_exhausted" if asked else None
    rule = settings().failure_letters
    is_retried = bool(
        request.retries or isinstance(getattr(task, "policy", None), RetryPolicy)
        or getattr(task, "autoretry_for", None)
    )  # fmt: skip
    if rule == "all" or (rule == "retried" and is_retried):
        return "retries_exhausted"
    return "failed" if rule == "retried" and settings().failed_kept else None


def bury(task: Any, request: Any, error: BaseException, reason: dead_letters.Reason, runs: int) -> None:
    """Keep the message of *request* as a dead letter.

    Raises:
        LeaseLost: the message went back to its queue; another run decides.
        redis.RedisError: Redis does not answer.
    """
    letter = dead_letters.DeadLetter.make(
        id=request.id + dead_letters.FAILED_TASK if reason == "failed" else request.id,
        task=task.name,
        queue=(request.delivery_info or {}).get("routing_key") or "",
        reason=reason,
        function=task.name,
        error=error,
        traceback="".join(traceback.format_exception(error)),
        runs=runs,
        items=1,
        envelope=dead_letters.message_text(request.args, request.kwargs),
        unique=unique.header_of(request),
    )
    if not dead_letters.bury(letter, delivery=lease.fence_of(request)):
        lease.warn_of_loss(request.id)
        raise lease.LeaseLost("another worker has this task")


def note_unkept(request: Any, outage: redis.RedisError) -> None:
    """Say in the log what is all that is left of a task: its letter could not be written."""
    logger.error("task %s failed for good and could not be kept as a dead letter: %r", request.id, outage)


def _note_cancelled(task: Any, request: Any, reason: str = "cancelled") -> None:
    task.backend.mark_as_revoked(request.id, reason, request=request, store_result=not request.ignore_result)


def _begun(record: Runs, request: Any, run_limit: int) -> Delivery:
    is_again = is_redelivered(request)
    begin = partial(record.begin, request.id, (0,), is_redelivered=is_again, run_limit=run_limit)
    delivery, _ = worker_runtime.off_loop(begin) if asks_redis(request.id, is_again, run_limit) else begin()
    return delivery


def concluded(request: Any) -> None:
    """What came of the run of *request* is stored, and its message settled: its runs need be counted no more."""
    record = getattr(request, "graft_record", None)
    if record is not None and not getattr(request, "graft_stored_later", False):
        _do([record.close])


def _close(task: Any, record: Runs, request: Any, error: BaseException | None) -> None:
    steps: list[Callable[..., Any]] = []
    if isinstance(error, lease.LeaseLost) or (isinstance(error, Reject) and error.requeue):
        steps = [record.survived]
    elif record.is_on_record and isinstance(error, TaskPredicate):
        steps = [record.close]
    elif record.is_on_record:
        request.graft_record = record  # Until its result is stored: a run that dies before counts with those before it.
    if not isinstance(error, Retry | Reject | lease.LeaseLost) and getattr(request, overlap.HEADER, None):
        steps.append(partial(overlap.note_ended, request))
    if _ends_unstored(task, request, error):
        steps.append(partial(unique.end, request))
    # Another run decides, or the worker has ended this process and says so.
    is_cut_short = isinstance(error, lease.LeaseLost | SystemExit | KeyboardInterrupt)
    if entry_results.is_from_beat(request) and not is_cut_short:
        steps.append(partial(entry_results.note, request, error))
    _do(steps)


def _do(steps: Sequence[Callable[..., Any]]) -> None:
    try:
        for step in steps:
            worker_runtime.off_loop(step)
    except redis.RedisError as outage:
        logger.debug("the record of a run stays until it expires: %r", outage)


def _ends_unstored(task: Any, request: Any, error: BaseException | None) -> bool:
    """Whether this is the end of a call with a unique key, and no result will be stored that gives it back."""
    if isinstance(error, Retry | lease.LeaseLost) or Terms.of(request) is None:
        return False
    if isinstance(error, Reject):
        return not error.requeue
    is_stored = isinstance(task.backend, RedisBackend) and unique.is_beside_results()
    return bool(request.ignore_result) or isinstance(error, Ignore) or not is_stored
