"""Reads the quarantine (config/transport/quarantine.py): lists its messages, sends one again, drops one.

A message has no id of its own that could be trusted, so it goes by a digest of its entry. Nothing is unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config.redis_client import broker
from graft.config.transport import task_validation
from graft.config.transport.quarantine import MESSAGES
from graft.tasks.errors import TaskQueueError
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import existing, peek
from graft.tasks.queues.peek import Waiting

ID: Final = 12


class NotReplayable(TaskQueueError):
    """The quarantined message cannot be sent again."""


@dataclass(frozen=True)
class Quarantined:
    """One message in the quarantine. ``since`` is seconds since the epoch, ``size`` that of the whole message."""

    id: str
    reason: str
    detail: str
    queue: str
    since: float
    size: int
    message: Waiting
    raw: bytes = field(repr=False)
    entry: bytes = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether all of it was kept: the end of a large message is cut off."""
        return len(self.raw) == self.size


def everything(client: Any = None) -> Iterator[Quarantined]:
    """The messages in the quarantine, the newest first."""
    if client is None:
        with broker() as own:
            yield from everything(own)
        return
    for entry in client.lrange(MESSAGES, 0, -1):
        yield _read(entry)


def _read(entry: bytes) -> Quarantined:
    found = json.loads(entry)
    raw = base64.b64decode(found["raw"])
    reason, detail, queue = (peek.printable(str(found[name])) for name in ("reason", "detail", "queue"))
    return Quarantined(
        hashlib.sha256(entry).hexdigest()[:ID], reason, detail, queue, float(found["first_seen"]), int(found["bytes"]),
        peek.read(raw, 0), raw, entry,
    )  # fmt: skip


def replay(one: Quarantined, queue: str | None = None) -> str:
    """Put *one* back on its queue, or on *queue*, and take it out of the quarantine; the queue's name.

    Raises:
        NotReplayable: it was cut off, or workers would refuse it again.
        ValueError: there is no such queue.
    """
    if not one.is_whole:
        raise NotReplayable(f"of its {one.size:,} bytes only {len(one.raw):,} were kept; send it again")
    if flaw := task_validation.flaw(one.raw):
        raise NotReplayable(f"workers would refuse it again: {peek.printable(flaw)}; remove the cause first")
    target = existing.checked(queue or one.queue)
    with broker() as client:
        client.lpush(lists(target)[_step(one.raw)], one.raw)
        client.lrem(MESSAGES, 1, one.entry)  # Afterwards: whoever is killed in between leaves it twice, not lost.
    return target


def drop(several: Iterable[Quarantined]) -> int:
    """Remove *several* for good; how many were still there."""
    with broker() as client:
        return sum(int(client.lrem(MESSAGES, 1, one.entry)) for one in several)


def _step(raw: bytes) -> int:
    """The priority step that the message asks for, the middle where it says none that there is."""
    steps = len(lists("x"))
    priority = json.loads(raw)["properties"].get("priority")
    return priority if isinstance(priority, int) and 0 <= priority < steps else steps // 2
