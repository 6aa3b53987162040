"""Celery's way out, with two things that Celery lacks: a middle priority where none is given, and a record of chords.

A receiver of Celery's signals could do the same, but every message would have to take the slow road for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.app.amqp import AMQP

from graft.config.queues import MIDDLE_PRIORITY
from graft.tasks.delivery import chord_records


class Amqp(AMQP):
    """Sends what Celery sends."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, *args: Any, **options: Any) -> Any:
            # Celery applies task_default_priority where it knows the task; otherwise unset would be most urgent.
            if options.get("priority") is None:
                options["priority"] = MIDDLE_PRIORITY
            headers, _, body, _ = message
            if headers.get("group") and (body[2] or {}).get("chord"):
                chord_records.note_part(headers, body)
            return send(producer, name, message, *args, **options)

        return send_task_message
