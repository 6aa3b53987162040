"""Messages that are not run: a revoked or expired task becomes a dead letter, and a refused message fails its call.

Celery drops revoked and expired messages in the worker's main process, and keeps revoked ids in memory only. A flag
that outlives restarts is set by ``celery -A graft control graft_cancel ID``; every task obeys it (tasks/guard.py).
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

import redis
from celery import signals

from graft.config.deployment import settings
from graft.config.queues import table
from graft.config.redis_client import connect
from graft.config.transport.task_validation import ID_LENGTH, Refusal
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.errors import EnvelopeError, SignatureError
from graft.tasks.queues import unique
from graft.tasks.results.backend import results_backend

logger = logging.getLogger(__name__)

PERIODIC: Final = ("graft.maintenance.", "graft.health.", "graft.history.", "graft.leaks.")


@signals.task_revoked.connect
def bury_dropped(request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """Keep a dead letter of *request*, whose message Celery has dropped."""
    queue = str((request.delivery_info or {}).get("routing_key") or "")
    if queue == table().maintenance != table().batch or str(request.task).startswith(PERIODIC):
        return  # What came too late is sent again anyway.
    when = f"it expired at {request.expires} before a worker ran it" if expired else "it was revoked"
    error = TimeoutError(when) if expired else RuntimeError(f"{when}{' while it ran' if terminated else ''}")
    letter = dead_letters.DeadLetter.make(
        id=str(request.id),
        task=str(request.task),
        queue=queue,
        reason="expired" if expired else "revoked",
        function=str(request.task),
        error=error,
        traceback="",
        runs=int(terminated),
        items=1,
        envelope=dead_letters.message_text(request.args or (), request.kwargs or {}),
        unique=unique.header_of(request),
    )
    try:
        with connect(socket_timeout=2.0, client_name="graft-refused") as client:  # This is the worker's own loop.
            dead_letters.bury(letter, client)
    except (redis.RedisError, OSError) as error:
        logger.error("task %s is %s and could not be kept as a dead letter: %r", letter.id, letter.reason, error)


def publish_refusal(message: Any, refused: Refusal) -> None:
    """Store a failure for the caller of a refused message, if the message names it; a result that exists stays."""
    task_id = message.headers.get("id")
    if not isinstance(task_id, str) or not 0 < len(task_id) <= ID_LENGTH or message.headers.get("ignore_result"):
        return
    is_forged = refused.reason == "bad_signature"
    kind = SignatureError if is_forged else EnvelopeError
    text = f"{refused.detail}; "
    if is_forged:
        text = f"the signature of this envelope does not verify ({refused.detail}): share one GRAFT_SIGNING_KEY; "
    result: dict[str, Any] = {
        "task_id": task_id,
        "status": "FAILURE",
        "result": {
            "exc_type": kind.__name__,
            "exc_module": kind.__module__,
            "exc_message": [f"{text}it was not run, and is in the quarantine as {refused.reason}"],
        },
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
    }
    key, record = results_backend().get_key_for_task(task_id), json.dumps(result)
    try:
        with connect(socket_timeout=2.0, client_name="graft-refused") as client:
            if client.set(key, record, nx=True, ex=int(settings().result_ttl)):
                client.publish(key, record)
    except (redis.RedisError, OSError) as error:
        logger.warning(
            "Redis did not take the failure of %s, which was refused; its caller waits until its timeout: %r",
            task_id,
            error,
        )
