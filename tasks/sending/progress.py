"""Lets others see the batches of this process: a note in Redis each second, for those that take longer than one.

A batch lives with its caller, so its caller publishes; a note that is not renewed expires. In the same round trip the
caller learns that somebody else has cancelled or paused a batch, and stops sending.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Final
from weakref import WeakSet

import redis

from graft.config import keys, redis_clock
from graft.config.deployment import existing, part
from graft.config.redis_client import connect, shared
from graft.tasks.delivery import cancellation
from graft.tasks.sending.batch_sender import BatchSender

logger = logging.getLogger(__name__)

NOTE: Final = keys.BATCH
BATCHES: Final = keys.BATCHES
PAUSED: Final = keys.PAUSED_BATCH
EVERY: Final = 1.0
EXPIRES: Final = 15
PAUSE_EXPIRES: Final = 86400  # Seconds after the caller of a paused batch was last there.


@dataclass(frozen=True)
class BatchNote:
    """How far a batch has come. ``total`` is None while the end of its input is not known; ``caller`` is host/pid.

    ``may_pause``: its caller can hold it up; ``paused_for`` are seconds of ``seconds`` for which it did.
    """

    id: str
    function: str
    queue: str
    total: int | None
    sent: int
    done: int
    failed: int
    retries: int
    seconds: float
    at: float
    caller: str
    may_pause: bool = False
    is_paused: bool = False
    paused_for: float = 0.0

    @property
    def rate(self) -> float:
        """Items a second since it began, without the pauses."""
        busy = self.seconds - self.paused_for
        return self.done / busy if busy > 0 else 0.0


class _Watched:
    """The batches of this process, and the ids of those that were published."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.senders: WeakSet[BatchSender[Any]] = WeakSet()
        self.published: set[str] = set()
        self.thread: threading.Thread | None = None


def watch(sender: BatchSender[Any]) -> None:
    """Publish the progress of this sender's batch until it is done. Returns at once."""
    watched = part(_Watched)
    with watched.lock:
        watched.senders.add(sender)
        if watched.thread is None or not watched.thread.is_alive():
            watched.thread = threading.Thread(target=_publish, args=(watched,), name="graft-progress", daemon=True)
            watched.thread.start()


def running(client: Any = None) -> list[BatchNote]:
    """The batches that somebody waits for now, the oldest first."""
    client = client or shared()
    names = client.zrangebyscore(BATCHES, redis_clock.now() - EXPIRES, "+inf")
    texts = client.mget([NOTE + name.decode() for name in names]) if names else []
    return sorted((BatchNote(**json.loads(text)) for text in texts if text), key=lambda note: -note.seconds)


def pause(batch_id: str) -> None:
    """Have the caller of a batch send nothing more of it; what was sent is finished. It obeys within two seconds."""
    shared().set(PAUSED + batch_id, 1, ex=PAUSE_EXPIRES)


def resume(batch_id: str) -> bool:
    """Have the caller of a batch go on; whether it was paused."""
    return bool(shared().delete(PAUSED + batch_id))


def _publish(watched: _Watched) -> None:
    while True:
        time.sleep(EVERY)
        with watched.lock:
            current = [sender for sender in watched.senders if not sender.receiver.done()]
            for sender in set(watched.senders) - set(current):
                watched.senders.discard(sender)
            if not current and not watched.published:
                watched.thread = None
                return
        try:
            # Not a client of its own: a batch that nobody will ever answer keeps this thread alive, perhaps for longer
            # than the settings that it began with.
            for sender in _write(current, watched.published, shared()):
                sender.cancel()
        except (redis.RedisError, OSError) as error:
            logger.debug("the progress of batches cannot be published: %s", error)
        except Exception:  # One batch that cannot tell how far it is must not hide the others for good.
            logger.exception("the progress of batches cannot be published")


def _write(current: list[BatchSender[Any]], published: set[str], client: Any) -> list[BatchSender[Any]]:
    """Publish how far each batch is; those that somebody has cancelled."""
    now = redis_clock.now()
    with client.pipeline(transaction=False) as pipe:
        for sender in current:
            pipe.mget(cancellation.CANCEL_KEY + sender.receiver.id, PAUSED + sender.receiver.id)
        for sender in current:
            far = sender.receiver.progress()
            if far.seconds < EVERY:
                continue
            note = BatchNote(
                sender.receiver.id, sender.options.function.name, sender.options.queue, far.total, far.sent, far.done,
                far.failed, far.retries, round(far.seconds, 1), now, f"{platform.node()}/{os.getpid()}",
                sender.may_pause, sender.is_paused, round(sender.paused_for, 1),
            )  # fmt: skip
            pipe.set(NOTE + note.id, json.dumps(asdict(note)), ex=EXPIRES)
            pipe.zadd(BATCHES, {note.id: now})
            if note.is_paused:
                pipe.expire(PAUSED + note.id, PAUSE_EXPIRES)
            published.add(note.id)
        for gone in published - {sender.receiver.id for sender in current}:
            pipe.delete(NOTE + gone, PAUSED + gone)
            pipe.zrem(BATCHES, gone)
            published.discard(gone)
        pipe.zremrangebyscore(BATCHES, 0, now - 10 * EXPIRES)
        flags = pipe.execute()[: len(current)]
    for sender, (_, paused) in zip(current, flags, strict=True):
        sender.note_pause(paused is not None)
    cancelled = [sender for sender, (flag, _) in zip(current, flags, strict=True) if cancellation.is_whole(flag)]
    return [sender for sender in cancelled if not sender.is_finished]


@atexit.register
def _withdraw() -> None:
    """Take the batches of this process off the list: it ends, and nobody waits for them any more."""
    watched = existing(_Watched)
    if watched is not None and watched.published:
        try:
            with connect(client_name="graft-progress", socket_timeout=EVERY) as client:
                client.delete(*(key + name for key in (NOTE, PAUSED) for name in watched.published))
                client.zrem(BATCHES, *watched.published)
        except (redis.RedisError, OSError) as error:
            logger.debug("the end of batches cannot be published: %s", error)
