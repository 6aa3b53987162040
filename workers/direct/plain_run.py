"""Which messages a pool process of ``direct`` runs by itself, and how: as the request that Celery would make says.

Everything out of the ordinary is the main process's: it makes Celery's own request, with all that this means.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

from graft.config.transport import signing
from graft.config.transport.fetch import Taken
from graft.config.transport.task_validation import forgery, message_in, refusal
from graft.tasks.delivery import cancellation

SHORT: Final = 3.0  # Seconds: the main process enforces limits, and hears of a run when it has lasted for one.


def is_short(*limits: float | None) -> bool:
    """Whether one of a run's time *limits*, in seconds, asks for the main process from the start."""
    return any(limit and limit < SHORT for limit in limits)


class PlainRun(NamedTuple):
    """A message that asks for an ordinary run: now, of a task that acknowledges late and has no rate limit."""

    taken: Taken
    name: str
    task_id: str
    retries: int
    request: dict[str, Any]
    body: Any
    unsigned_by: str | None  # Who has sent it without a signature.


class Judge:
    """Tells ordinary messages from the others."""

    def __init__(self, app: Any, hostname: str) -> None:
        self._tasks = app.tasks
        self._hostname = hostname
        self._accept = prepare_accept_content(app.conf.accept_content)
        self.limit = 0  # Bytes of a message.
        self.others: frozenset[str] = frozenset()  # Tasks that are the main process's.

    def plain_run(self, taken: Taken) -> PlainRun | None:
        """The run that *taken* asks for, or None where the main process has to see it."""
        try:
            message = message_in(taken.raw, self.limit, self._accept)
        except (ValueError, TypeError):
            return None
        headers: dict[str, Any] = message.headers
        name = str(headers.get("task"))
        if name in self.others or name not in self._tasks or headers.get("eta") or headers.get("expires"):
            return None
        if forgery(message) or refusal(message) or is_short(*(headers.get("timelimit") or ())):
            return None
        body = message.payload
        if not isinstance(body, list | tuple) or len(body) != 3 or cancellation.may_be_cancelled(headers["id"]):
            return None
        return PlainRun(
            taken, name, headers["id"], headers.get("retries") or 0, self._request(message, taken.tag), body,
            None if signing.HEADER in headers else str(headers.get("origin"))[:255],
        )  # fmt: skip

    def _request(self, message: Message, tag: str) -> dict[str, Any]:
        """What Celery's ``Request`` has for a run of *message*."""
        properties, info = message.properties, message.delivery_info
        properties["delivery_tag"] = tag
        return {
            **message.headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._hostname,
            "delivery_info": {
                "exchange": info.get("exchange"),
                "routing_key": info.get("routing_key"),
                "priority": properties.get("priority"),
                "redelivered": info.get("redelivered", False),
            },
        }
