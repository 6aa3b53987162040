"""A task with a retry policy of ours instead of Celery's own, for users' tasks and for our own."""

from __future__ import annotations

from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Reject, Retry

from graft.tasks.delivery import lease, outbox
from graft.tasks.policy import ONCE, RetryPolicy


class ReliableTask(Task):
    """A task that obeys its RetryPolicy; what the policy gives up on becomes a dead letter (tasks/guard.py).

    Its message is acknowledged when the run has ended, and returns when its process dies.
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    max_retries = None  # The policy counts; Celery only carries the message back.
    policy: RetryPolicy = ONCE

    def raise_retry(self, **options: Any) -> NoReturn:
        raise_retry(self, **options)


def raise_retry(task: Any, **options: Any) -> NoReturn:
    """Send the message of *task*, which runs, back to run once more, and raise Retry; Reject if the broker refuses."""
    try:
        raise task.retry(**options)
    except Reject as refused:
        # Celery would drop the message here (5.7, Task.retry); unacknowledged, it comes back by itself.
        raise Reject(refused.reason, requeue=True) from refused


def raise_postponed(task: Any, wait: float, error: Exception) -> NoReturn:
    """Send the message of *task*, which has not begun, back to the queue for *wait* seconds, and raise Retry.

    Celery's own count of retries stays as it is, so this uses up none.
    """
    request = task.request
    again = task.signature_from_request(request, countdown=wait, retries=request.retries or 0)
    try:
        with outbox.instead_of_the_message():
            again.apply_async()
    except lease.LeaseLost:
        raise
    except Exception as refused:
        raise Reject(refused, requeue=True) from refused
    raise Retry(exc=error, when=wait, sig=again)
