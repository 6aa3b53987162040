"""The task that runs one call of somebody's function, as a Celery task of its own: states, ETA, retries, revoke.

    framework.submit_task ── sealed call ──► worker: graft.call ── function(*args) ──► sealed value, record, totals

Where many items are at hand, envelopes (``tasks/running/envelope_task.py``) cost a hundredth of this.
"""

from __future__ import annotations

import inspect
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from celery import current_task
from celery.exceptions import TaskPredicate, TimeLimitExceeded

from graft.config.deployment import settings
from graft.config.own_task import own_task
from graft.config.redis_client import shared
from graft.tasks import codec, worker_runtime
from graft.tasks.base import ReliableTask
from graft.tasks.callables.references import FunctionRef, refer, resolve
from graft.tasks.errors import EnvelopeError
from graft.tasks.policy import ExactWaits, RetryPolicy
from graft.tasks.results import call_records
from graft.tasks.results.backend import ResultsInRedis
from graft.tasks.shared import admission

CALL: Final = "graft.call"


def seal(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """One call as signed text.

    Raises:
        UnreferenceableError: a worker can neither import nor receive *func*.
        UnpicklableError, PayloadTooLargeError: an argument cannot travel.
    """
    ref = refer(func)
    frame = codec.dump_item((tuple(args), dict(kwargs)), settings().item_limit, "the arguments of the call")
    return codec.seal("call", pickle.dumps((ref.how, ref.name, ref.payload, ref.is_async, frame), codec.PROTOCOL))


def _open(wire: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    *fields, frame = pickle.loads(codec.unseal("call", wire))
    args, kwargs = pickle.loads(frame)
    return resolve(FunctionRef(*fields)), args, kwargs


def value_of(task_id: str, text: str) -> Any:
    """The value that the call returned."""
    return pickle.loads(codec.unseal(f"call-value:{task_id}", text))


def error_of(task_id: str, text: str) -> BaseException:
    """The error that the call ended with, its remote traceback as the cause."""
    return codec.load_error(codec.unseal(f"call-error:{task_id}", text))


class _AsAsked(RetryPolicy):
    """The policy that the message itself asks for; what cannot be opened is not tried again."""

    def wait_after(self, run: int, error: BaseException) -> float | None:
        if isinstance(error, EnvelopeError):
            return None
        asked = current_task.request.kwargs
        runs = asked["retry_limit"] + 1
        return ExactWaits(runs, asked["retry_wait"], factor=2.0, on=Exception).wait_after(run, error)


class CallTask(ResultsInRedis, ReliableTask):
    """Keeps a record of how each call ended, before its result is published."""

    abstract = True
    track_started = True
    policy = _AsAsked()
    resultrepr_maxsize = 64  # The result is sealed text.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began, cpu_began = time.perf_counter(), time.thread_time()

        def note(error: BaseException | None) -> None:
            self.note(kwargs["owner"], time.perf_counter() - began, time.thread_time() - cpu_began, error)

        try:
            result = self.run(*args, **kwargs)
        except TaskPredicate:
            raise
        except Exception as error:
            note(error)
            raise
        note(None)
        return result

    def note(self, owner: str, seconds: float, cpu: float, error: BaseException | None) -> None:
        task_id, worker = self.request.id, self.request.hostname or ""
        text = None if error is None else codec.seal(f"call-error:{task_id}", codec.dump_error(error, skip_frames=3))
        call_records.ended(shared(), task_id, owner, worker, seconds, cpu, text)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Note what a hard time limit ended: its process is gone, so the worker itself calls this (Celery 5.7)."""
        if isinstance(exc, TimeLimitExceeded):
            text = codec.seal(f"call-error:{task_id}", codec.dump_error(exc))
            limit = self.app.conf.task_time_limit or 0.0
            call_records.ended(shared(), task_id, kwargs["owner"], "", float(limit), 0.0, text)


@own_task(CALL, base=CallTask, bind=True)
def call(self: CallTask, wire: str, *, owner: str, retry_limit: int, retry_wait: float) -> str:
    """Run the call in *wire* for the framework *owner*; its value, sealed. *retry_*… are the policy's."""
    func, args, kwargs = _open(wire)

    def run(*args: Any, **kwargs: Any) -> Any:
        value = func(*args, **kwargs)
        return worker_runtime.wait_for(value) if inspect.isawaitable(value) else value

    value = admission.run(run, func, args, kwargs, self.request.id)
    return codec.seal(
        f"call-value:{self.request.id}", codec.dump_item(value, settings().item_limit, "the result of the call")
    )
