"""Celery's way out, with two things that it lacks: a middle priority where none is given, and a look at chords.

A receiver of Celery's signals could do the same, but every message would have to take the slow road for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery.app.amqp import AMQP

from graft.config.queues import MIDDLE_PRIORITY

OnPart = Callable[[Mapping[str, Any], Any], None]

_on_part: OnPart | None = None


def watch_chords(on_part: OnPart) -> None:
    """Have *on_part* called with the headers and the body of every message that is a part of a chord."""
    global _on_part
    _on_part = on_part


class Amqp(AMQP):
    """Sends what Celery sends."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, *args: Any, **options: Any) -> Any:
            # Celery applies task_default_priority where it knows the task; otherwise unset would be most urgent.
            if options.get("priority") is None:
                options["priority"] = MIDDLE_PRIORITY
            headers, _, body, _ = message
            if _on_part is not None and headers.get("group") and (body[2] or {}).get("chord"):
                _on_part(headers, body)
            return send(producer, name, message, *args, **options)

        return send_task_message
