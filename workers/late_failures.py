"""Failures that no run could report: a hard time limit, a lost process, a result that cannot be encoded.

Celery sends ``task_failure`` for each, in the worker's main process or after the run; here they get their dead letter.
What the guard has kept already (tasks/guard.py) is left alone.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, Final

import redis
from celery import signals
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from graft.config.redis_client import shared
from graft.tasks import guard
from graft.tasks.dead_letters.store import Reason
from graft.tasks.results import attempts, entry_results

logger = logging.getLogger(__name__)

REASONS: Final[dict[type[BaseException], Reason]] = {TimeLimitExceeded: "time_limit", WorkerLostError: "lost"}


@signals.task_failure.connect
def _bury(
    sender: Any = None, task_id: str = "", exception: Any = None, args: Any = None, kwargs: Any = None, **_: Any
) -> None:
    if not guard.is_guarded(sender):
        return  # Keeps its own letters, or wants none.
    here = sender.request_stack.top
    if here is not None and getattr(here, "graft_failed", False):
        return
    cause = next((reason for kind, reason in REASONS.items() if isinstance(exception, kind)), None)
    request = here or SimpleNamespace(id=task_id, retries=0, delivery_info=None, args=args or (), kwargs=kwargs or {})
    # What was cut short was never asked what it thinks of itself, unless its task wants no letters.
    if cause is not None:
        _note_attempt(sender, request, exception)
    if cause is None:
        cause = guard.letter_reason(sender, request, exception)
    elif not getattr(sender, "graft_letters", True):
        return
    if cause is None:
        return
    try:
        guard.bury(sender, request, exception, cause, (request.retries or 0) + 1)
    except redis.RedisError as outage:
        guard.note_unkept(request, outage)


def _note_attempt(task: Any, request: Any, error: BaseException) -> None:
    """The run's own process is gone, and could not note how it ended."""
    try:
        attempts.add(
            shared(), request, run=(request.retries or 0) + 1, seconds=0.0, outcome="ended with its process",
            name=task.name, error=error,
        )  # fmt: skip
        entry_results.note_killed(request.id, error)
    except redis.RedisError as outage:
        logger.debug("how the run of %s ended could not be noted: %r", request.id, outage)
