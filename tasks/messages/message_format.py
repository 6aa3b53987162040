"""What others need to know of a message as it lies in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from graft.config import keys
from graft.config.queues import table

SEPARATOR: Final = "\x06\x16"  # Between a queue's name and its priority step (kombu/transport/redis.py).
SENT_AT: Final = "graft_sent_at"  # The header with the time at which one of our callers sent the message.
MESSAGE_TTL: Final = 7 * 86400  # What is kept for a message outlives every redelivery of it.
UNACKED: Final = keys.UNACKED  # The hash of the messages that workers hold.


def waits_since(headers: Mapping[str, Any]) -> float | None:
    """When a message began to wait: when it was sent, or was due. None where its sender does not say."""
    sent, eta = headers.get(SENT_AT), headers.get("eta")
    if not isinstance(sent, int | float | str) or not sent:
        return None
    try:
        since = float(sent)
    except ValueError:
        return None
    with suppress(ValueError):
        since = max(since, datetime.fromisoformat(eta).timestamp()) if isinstance(eta, str) else since
    return since


def lists(queue: str) -> list[str]:
    """The lists of *queue*, one for each priority; that of priority 0 has the queue's own name."""
    return [f"{queue}{SEPARATOR}{step}" if step else queue for step in table().steps]
