"""Takes waiting messages out of their queues: keeps their content, and stores a result for those who wait.

    purge    dead letter written ─► message taken out ─► result stored (CancelledBatchError)
    cancel   flag set ─► waiting messages taken out, results stored ─► workers and the caller obey the flag for the rest

A process that is killed between any two steps has lost nothing: a caller without a result finds its message missing,
and sends it again (lost_messages.py).
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from celery.app.task import Context

from graft.config import redis_clock
from graft.config.deployment import app, settings
from graft.config.redis_client import broker, shared
from graft.config.transport import due, task_validation
from graft.config.transport.unique import HEADER, Terms
from graft.tasks import codec
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import RUN_ENVELOPE
from graft.tasks.errors import CancelledBatchError, EnvelopeError
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import existing, peek, unique
from graft.tasks.queues.peek import Waiting

PASSES: Final = 5
CHECKS: Final = frozenset({"graft.health.echo"})  # Left where they are: one that is gone would look like a fault.


@dataclass
class Withdrawn:
    """How many messages were taken out: kept as dead letters, quarantined, or dropped; and the items in them."""

    dead_letters: int = 0
    quarantined: int = 0
    dropped: int = 0
    items: int = 0


def purge(queue: str, wanted: Callable[[Waiting], bool] = lambda one: True, *, drop: bool = False) -> Withdrawn:
    """Take what waits in *queue* now, and is *wanted*, out of it: into the dead letters, unless it is to be dropped.

    Messages that workers would quarantine go to the quarantine: nothing of them is believed, opened or signed.
    """
    with broker() as client:
        purge = _Purge(queue, wanted, drop, client)
        for step, key in enumerate(lists(queue)):
            for _ in range(PASSES):
                if not purge.walk(key, step):
                    break
    return purge.done


@dataclass
class _Purge:
    queue: str
    wanted: Callable[[Waiting], bool]
    drop: bool
    client: Any
    done: Withdrawn = field(default_factory=Withdrawn)

    def walk(self, key: str, step: int) -> bool:
        """Walk along a list, the oldest first; whether another walk may find what workers moved past this one."""
        left, kept, taken = int(self.client.llen(key)), 0, 0
        while left > 0:
            page = self.client.lrange(key, -(kept + min(peek.PAGE, left)), -(kept + 1))
            if not page:
                break
            left -= len(page)
            for raw in reversed(page):
                one = peek.read(raw, step)
                if one.task in CHECKS or not self.wanted(one):
                    kept += 1
                    continue
                taken += 1
                self.take_out(key, raw, one)
        return bool(kept and taken)

    def take_out(self, key: str, raw: bytes, one: Waiting) -> None:
        reason = f"{'dropped' if self.drop else 'purged'} from the queue {self.queue}"
        flaw = task_validation.flaw(raw)
        dead_letter = None
        if not self.drop and not flaw:
            dead_letter = dead_letter_of(raw, one, self.queue, reason)
            dead_letters.bury(dead_letter)
        if not self.client.lrem(key, -1, raw):  # A worker was faster.
            if dead_letter is not None:
                dead_letters.remove(dead_letter)
            return
        self.done.items += one.items
        if self.drop:
            self.done.dropped += 1
        elif flaw:
            self.done.quarantined += 1
            _quarantine(raw, self.queue, flaw)
        else:
            self.done.dead_letters += 1
        if not flaw:
            publish_revoked(raw, reason)


def dead_letter_of(raw: bytes, one: Waiting, queue: str, reason: str) -> DeadLetter:
    """The message in *raw*, which a worker would run, as a dead letter that can be replayed."""
    args, kwargs, embed = _body(raw)
    envelope = dead_letters.message_text(args, kwargs)
    if one.task == RUN_ENVELOPE:
        try:
            wire = payloads.fetch(str(args[0]), one.id)
            envelope = wire if isinstance(wire, str) else codec.as_text(wire)
        except EnvelopeError:  # What was kept beside the message is gone; the replay says so.
            pass
    elif embed:
        envelope = json.dumps({**json.loads(envelope), "embed": embed})
    return DeadLetter.make(
        id=one.id, task=one.task, queue=queue, reason="revoked", function=one.function,
        error=CancelledBatchError(reason), traceback="", runs=0, items=one.items, envelope=envelope,
        unique=json.loads(raw)["headers"].get(HEADER),
    )  # fmt: skip


def publish_revoked(raw: bytes, reason: str) -> None:
    """Store a result for the message in *raw*, which a worker would have run: revoked. Chords go on without it."""
    headers = json.loads(raw)["headers"]
    shared().delete(payloads.BODY + headers["id"])
    embed = _body(raw)[2]
    request = Context(
        id=headers["id"], task=headers["task"], group=headers.get("group"), group_index=headers.get("group_index"),
        chord=embed.get("chord"), root_id=headers.get("root_id"), parent_id=headers.get("parent_id"),
    )  # fmt: skip
    app().backend.mark_as_revoked(headers["id"], reason, request, store_result=not headers.get("ignore_result"))
    if (terms := Terms.of(headers)) is not None:
        unique.end_of(terms, headers["id"])


def cancel(batch: str, *, running: bool = False) -> int:
    """Keep what has not begun of *batch* from running: on every worker, across restarts; how many messages waited.

    Its caller stops sending (progress.py), and gets the results of the messages taken out at once. What runs is
    finished, or ended if *running*. Where signatures cannot be verified, waiting messages are left to the workers.
    """
    cancellation.cancel(batch, settings().result_ttl, running=running)
    withdrawn = 0
    if not task_validation.can_verify():
        return withdrawn
    with broker() as client:
        for _ in range(PASSES):
            before = withdrawn
            for key, raw in waiting_of(batch, client):
                if not task_validation.flaw(raw) and client.lrem(key, 1, raw):
                    withdrawn += 1
                    publish_revoked(raw, "cancelled")
            later = [name for name, raw in due.mentioning(batch, client) if peek.read(raw, 0).batch == batch]
            for raw in due.remove(later, client).values():
                withdrawn += 1
                publish_revoked(raw, "cancelled")
            if withdrawn == before:
                break  # What is taken out moves the rest, so one search may pass some over; this one found none.
    return withdrawn


def waiting_of(batch: str, client: Any, queues: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """The waiting messages of *batch*, each with the list that it is in; in *queues*, in all unless some are named."""
    lengths = existing.lengths(queues or existing.filled(existing.names(client), client), client)
    for key, raw in peek.mentioning(batch, lengths, client):
        if peek.read(raw, 0).batch == batch:
            yield key, raw


def _body(raw: bytes) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    message = json.loads(raw)
    body = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = b64decode(body)
    args, kwargs, embed = json.loads(body)
    return args, kwargs, {name: value for name, value in (embed or {}).items() if value}


def _quarantine(raw: bytes, queue: str, flaw: str) -> None:
    reason, _, detail = flaw.partition(": ")
    with app().connection_for_write() as connection:
        connection.default_channel.quarantine(raw, queue, reason, f"{detail}; purged at {redis_clock.now():.0f}")
