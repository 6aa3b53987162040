"""Has Celery send what follows from a run with the run's acknowledgement (tasks/delivery/outbox.py).

Links and the next step of a chain are kept by ``Amqp._retry_publish`` (tasks/sending/amqp.py). Here are the others that
Celery sends by itself: a retry, a task's replacement, errbacks; and the end, at which all of them leave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Task
from celery.backends.base import Backend
from celery.worker.request import Request

from graft.tasks import guard
from graft.tasks.delivery import outbox


def install() -> None:
    """In a worker, before its pool processes are forked."""
    if hasattr(Backend.mark_as_done, "__wrapped__"):
        return
    Task.retry = _instead(Task.retry)
    Task.on_replace = _instead(Task.on_replace)
    Backend.mark_as_done = _concluding_success(Backend.mark_as_done)
    Backend.mark_as_failure = _concluding_failure(Backend.mark_as_failure)
    Backend._call_task_errbacks = _keeping(Backend._call_task_errbacks)
    Request._success_was_stored = _unless_something_follows(Request._success_was_stored)


def _instead(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def send_instead(self: Any, *args: Any, **options: Any) -> Any:
        with outbox.instead_of_the_message():
            return send(self, *args, **options)

    return send_instead


def _concluding_success(mark: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(mark)
    def mark_as_done(self: Any, task_id: str, result: Any, request: Any = None, *args: Any, **options: Any) -> None:
        outbox.close(request)
        mark(self, task_id, result, request, *args, **options)
        outbox.conclude(request)
        guard.concluded(request)

    return mark_as_done


def _concluding_failure(mark: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(mark)
    def mark_as_failure(
        self: Any, task_id: str, exc: Any, traceback: Any = None, request: Any = None, *args: Any, **options: Any
    ) -> None:
        outbox.close(request, has_failed=True)
        mark(self, task_id, exc, traceback, request, *args, **options)
        outbox.conclude(request)
        guard.concluded(request)

    return mark_as_failure


def _keeping(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def call_errbacks(self: Any, request: Any, *args: Any, **options: Any) -> None:
        with outbox.kept_for_the_end_of(request):
            call(self, request, *args, **options)

    return call_errbacks


def _unless_something_follows(was_stored: Callable[..., Any]) -> Callable[..., Any]:
    """A success is stored by a process that died, and Celery would acknowledge: what follows may not have left yet.

    The message goes back, which does nothing where it was settled.
    """

    @wraps(was_stored)
    def is_all_done(self: Any) -> Any:
        follows = self._context.callbacks or self._context.chain
        if follows and self.task.acks_late and self.task.reject_on_worker_lost:
            return False
        return was_stored(self)

    return is_all_done
