"""Policy, run counter and dead letters on Celery's Task, for users' tasks and for our own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import Ignore, Reject, TaskPredicate

from graft.config.deployment import settings
from graft.tasks import worker_runtime
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import poison_isolation
from graft.tasks.delivery.run_counter import Runs
from graft.tasks.errors import PoisonedError
from graft.tasks.policy import ONCE, RetryPolicy


class ReliableTask(Task):
    """A task that obeys its RetryPolicy and buries what the policy gives up on.

    Its message is acknowledged when the run has ended, returns when its process dies, and is buried when it has taken
    ``run_limit`` processes with it.
    """

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    max_retries = None  # The policy counts; Celery only carries the message back.
    policy: RetryPolicy = ONCE

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            return self.run(*args, **kwargs)
        with self.isolated_if_poisonous():
            return self._run_counted(args, kwargs)

    @contextmanager
    def isolated_if_poisonous(self) -> Iterator[None]:
        """A task one crash away from its limit begins only while no other such runs here; else it goes back."""
        try:
            yield
        except poison_isolation.NotAloneError as error:
            worker_runtime.pause(poison_isolation.WAIT)
            raise Reject(error, requeue=True) from error
        except BaseException:
            poison_isolation.leave(self.request.id)
            raise
        poison_isolation.leave(self.request.id)

    def _run_counted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        record = Runs(self.request.id, self.request.retries)
        delivery, _ = worker_runtime.off_loop(record.begin, self.request.id, (0,))
        if delivery.cancelled:
            worker_runtime.off_loop(self._note_cancelled)
            raise Ignore("cancelled before it ran")
        run = self.request.retries + 1
        try:
            if delivery.is_dead(0, settings().run_limit):
                raise PoisonedError(f"{self.name} took {delivery.run - 1} worker processes with it")
            result = self.run(*args, **kwargs)
        except TaskPredicate:  # Retry, Ignore and Reject are answers, not failures.
            raise
        except Exception as error:
            wait = self.policy.wait_after(run, error)
            if wait is None:
                # First: whoever reads FAILURE must find the letter.
                reason: dead_letters.Reason = "poisoned" if isinstance(error, PoisonedError) else "retries_exhausted"
                worker_runtime.off_loop(self.bury, error, reason, run)
                raise
            self.raise_retry(countdown=wait, exc=error)
        else:
            worker_runtime.off_loop(record.close)
            return result

    def _note_cancelled(self) -> None:
        self.backend.mark_as_revoked(self.request.id, "cancelled", request=self.request)

    def raise_retry(self, **options: Any) -> NoReturn:
        """Send this message back to run once more, and raise Retry; when the broker refuses, Reject it to its queue."""
        try:
            raise self.retry(**options)
        except Reject as refused:
            # Celery would drop the message here (5.7, Task.retry); unacknowledged, it comes back by itself.
            raise Reject(refused.reason, requeue=True) from refused

    def bury(self, error: BaseException, reason: dead_letters.Reason, runs: int) -> None:
        """Keep this message as a dead letter."""
        dead_letters.bury(
            dead_letters.DeadLetter.make(
                id=self.request.id,
                task=self.name,
                queue=(self.request.delivery_info or {}).get("routing_key", ""),
                reason=reason,
                function=self.name,
                error=error,
                traceback="".join(traceback.format_exception(error)),
                runs=runs,
                items=1,
                envelope=dead_letters.message_text(self.request.args, self.request.kwargs),
            )
        )
