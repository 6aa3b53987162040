"""Takes waiting messages back: keeps what they hold, and tells whoever waits for them.

    purge    letter written ─► message taken out ─► caller told (CancelledBatchError)
    cancel   flag raised ─► waiting messages taken out, caller told ─► workers and the caller heed the flag for the rest

Killed between any two steps, it has lost nothing. A caller that was not told would miss its message, and send it again
(lost_messages.py).
"""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from celery.app.task import Context

from graft.config.deployment import app, settings
from graft.config.queues import names
from graft.config.redis_client import broker, shared
from graft.tasks import codec
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import RUN_ENVELOPE
from graft.tasks.errors import CancelledBatchError, EnvelopeError
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import lists
from graft.tasks.queues import peek
from graft.tasks.queues.peek import Judge, Waiting

PASSES: Final = 5
CHECKS: Final = frozenset({"graft.health.echo"})  # Left where they are: one that is gone would look like a fault.


@dataclass
class Withdrawn:
    """What became of the messages that were taken out: kept as dead letters, quarantined, or dropped."""

    letters: int = 0
    quarantined: int = 0
    dropped: int = 0
    items: int = 0


def purge(
    queue: str, judge: Judge, wanted: Callable[[Waiting], bool] = lambda one: True, *, drop: bool = False
) -> Withdrawn:
    """Take what waits in *queue* now, and is *wanted*, out of it: into the dead letters, unless it is to be dropped.

    What workers would quarantine goes to the quarantine: nothing of it is believed, opened or signed.
    """
    done = Withdrawn()
    with broker() as client:
        for step, key in enumerate(lists(queue)):
            for _ in range(PASSES):
                if not _pass(key, queue, step, client, judge, wanted, drop, done):
                    break
    return done


def _pass(
    key: str, queue: str, step: int, client: Any, judge: Judge, wanted: Callable[[Waiting], bool], drop: bool,
    done: Withdrawn,
) -> bool:  # fmt: skip
    """One walk along a list, the oldest first; whether another may find what workers moved past this one."""
    left, kept, taken = int(client.llen(key)), 0, 0
    while left > 0:
        page = client.lrange(key, -(kept + min(peek.PAGE, left)), -(kept + 1))
        if not page:
            break
        left -= len(page)
        for raw in reversed(page):
            one = peek.read(raw, step)
            if one.task in CHECKS or not wanted(one):
                kept += 1
                continue
            taken += 1
            _withdraw(key, queue, raw, one, client, judge(raw), drop, done)
    return bool(kept and taken)


def _withdraw(
    key: str, queue: str, raw: bytes, one: Waiting, client: Any, flaw: str, drop: bool, done: Withdrawn
) -> None:
    reason = f"{'dropped' if drop else 'purged'} from the queue {queue}"
    letter = None
    if not drop and not flaw:
        letter = letter_of(raw, one, queue, reason)
        dead_letters.bury(letter)
    if not client.lrem(key, -1, raw):  # A worker was faster.
        if letter is not None:
            dead_letters.remove(letter)
        return
    done.items += one.items
    if flaw and not drop:
        done.quarantined += 1
        _quarantine(raw, queue, flaw)
    elif drop:
        done.dropped += 1
    else:
        done.letters += 1
    if not flaw:
        tell(raw, reason)


def letter_of(raw: bytes, one: Waiting, queue: str, reason: str) -> DeadLetter:
    """The message in *raw*, which a worker would run, as a letter that can be replayed."""
    args, kwargs, embed = _body(raw)
    envelope = dead_letters.message_text(args, kwargs)
    if one.task == RUN_ENVELOPE:
        try:
            wire = payloads.fetch(str(args[0]), one.id)
            envelope = wire if isinstance(wire, str) else codec.as_text(wire)
        except EnvelopeError:  # What was kept beside the message is gone; the letter says so when it is replayed.
            pass
    elif embed:
        envelope = json.dumps({**json.loads(envelope), "embed": embed})
    return DeadLetter.make(
        id=one.id, task=one.task, queue=queue, reason="revoked", function=one.function,
        error=CancelledBatchError(reason), traceback="", runs=0, items=one.items, envelope=envelope,
    )  # fmt: skip


def tell(raw: bytes, reason: str) -> None:
    """Answer for the message in *raw*, which a worker would have run: it was taken back. Chords go on without it."""
    headers = json.loads(raw)["headers"]
    shared().delete(payloads.BODY + headers["id"])
    embed = _body(raw)[2]
    request = Context(
        id=headers["id"], task=headers["task"], group=headers.get("group"), group_index=headers.get("group_index"),
        chord=embed.get("chord"), root_id=headers.get("root_id"), parent_id=headers.get("parent_id"),
    )  # fmt: skip
    app().backend.mark_as_revoked(headers["id"], reason, request, store_result=not headers.get("ignore_result"))


def cancel(batch: str, judge: Judge) -> int:
    """Keep what has not begun of *batch* from running: on every worker, across restarts; how many messages waited.

    Its caller stops sending (progress.py) and hears of what was taken out at once. What runs is finished.
    """
    cancellation.cancel(batch, settings().result_ttl)
    withdrawn = 0
    with broker() as client:
        for _ in range(PASSES):
            before = withdrawn
            for key, raw in waiting_of(batch, client):
                if not judge(raw) and client.lrem(key, 1, raw):
                    withdrawn += 1
                    tell(raw, "cancelled")
            if withdrawn == before:
                break  # What is taken out moves the rest, so one search may pass some over; this one found none.
    return withdrawn


def waiting_of(batch: str, client: Any) -> Iterator[tuple[str, bytes]]:
    """The waiting messages of *batch*, each with the list that it is in."""
    for queue in names():
        for key, raw in peek.mentioning(batch, queue, client):
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
        connection.default_channel.quarantine(raw, queue, reason, f"{detail}; purged at {time.time():.0f}")
