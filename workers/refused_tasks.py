"""Keeps a dead letter of what will not run because it was revoked or came too late: nothing vanishes without a trace.

Celery acknowledges such a message in the worker's own process, and remembers revoked ids in memory only. A flag that
outlives restarts is raised by ``celery -A graft control graft_cancel ID``, and seen by every ReliableTask.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

import redis
from celery import signals

from graft.config.deployment import app, settings
from graft.config.redis_client import connect
from graft.config.transport.task_validation import ID_LENGTH, Refusal
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.errors import EnvelopeError, SignatureError

logger = logging.getLogger(__name__)

UNCOUNTED: Final = "maintenance"  # A periodic check that came too late is simply made again.


@signals.task_revoked.connect
def account_for(request: Any = None, terminated: bool = False, expired: bool = False, **_: Any) -> None:
    """Celery has dropped the message of *request*; keep a letter of it."""
    queue = str((request.delivery_info or {}).get("routing_key") or "")
    if queue == UNCOUNTED:
        return
    when = f"its time ran out at {request.expires}" if expired else "somebody revoked it"
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
    )
    try:
        with connect(socket_timeout=2.0, client_name="graft-accounting") as client:  # This is the worker's own loop.
            dead_letters.bury(letter, client)
    except (redis.RedisError, OSError) as error:
        logger.error("no letter could be kept of %s, which is %s: %r", letter.id, letter.reason, error)


def tell_caller(message: Any, refused: Refusal) -> None:
    """Answer for a message that is not run, as far as it says for whom; an answer that is there already stays."""
    task_id = message.headers.get("id")
    if not isinstance(task_id, str) or not 0 < len(task_id) <= ID_LENGTH or message.headers.get("ignore_result"):
        return
    is_forged = refused.reason == "bad_signature"
    kind = SignatureError if is_forged else EnvelopeError
    text = f"{refused.detail}; "
    if is_forged:
        text = f"the signature of this envelope does not verify ({refused.detail}): share one GRAFT_SIGNING_KEY; "
    answer: dict[str, Any] = {
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
    key, record = app().backend.get_key_for_task(task_id), json.dumps(answer)
    try:
        with connect(socket_timeout=2.0, client_name="graft-accounting") as client:
            if client.set(key, record, nx=True, ex=int(settings().result_ttl)):
                client.publish(key, record)
    except (redis.RedisError, OSError) as error:
        logger.warning("the caller of %s could not be told that it was refused: %r", task_id, error)
