"""Lets others see the batches of this process: a note in Redis each second, for those that take longer than one.

A batch lives with its caller, so its caller tells; a note that is not renewed expires. In the same round trip the
caller hears that somebody else has cancelled a batch, and stops sending.
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
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import redis

from graft.config.deployment import existing, part
from graft.config.redis_client import connect, shared
from graft.tasks.delivery import cancellation

if TYPE_CHECKING:
    from graft.tasks.sending.batch_sender import Feeder

logger = logging.getLogger(__name__)

NOTE: Final = "graft:batch:"
BATCHES: Final = "graft:batches"
EVERY: Final = 1.0
EXPIRES: Final = 15


@dataclass(frozen=True)
class BatchNote:
    """How far a batch has come. ``total`` is None while the end of its input is not known; ``caller`` is host/pid."""

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


class _Watched:
    """The batches of this process, and those that others were told of."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.feeders: WeakSet[Feeder] = WeakSet()
        self.published: set[str] = set()
        self.thread: threading.Thread | None = None


def watch(feeder: Feeder) -> None:
    """Publish the progress of this feeder's batch until it is done. Returns at once."""
    watched = part(_Watched)
    if feeder in watched.feeders or not feeder.batch.is_told:
        return
    with watched.lock:
        watched.feeders.add(feeder)
        if watched.thread is None:
            watched.thread = threading.Thread(target=_publish, args=(watched,), name="graft-progress", daemon=True)
            watched.thread.start()


def running(client: Any = None) -> list[BatchNote]:
    """The batches that somebody waits for now, the oldest first."""
    client = client or shared()
    names = client.zrangebyscore(BATCHES, time.time() - EXPIRES, "+inf")
    texts = client.mget([NOTE + name.decode() for name in names]) if names else []
    return sorted((BatchNote(**json.loads(text)) for text in texts if text), key=lambda note: -note.seconds)


def _publish(watched: _Watched) -> None:
    client = connect(client_name="graft-progress")
    while True:
        time.sleep(EVERY)
        with watched.lock:
            current = [feeder for feeder in watched.feeders if not feeder.batch.done()]
            for feeder in set(watched.feeders) - set(current):
                watched.feeders.discard(feeder)
            if not current and not watched.published:
                watched.thread = None
                client.close()
                return
        try:
            for feeder in _write(current, watched.published, client):
                feeder.batch.cancel()
        except (redis.RedisError, OSError) as error:
            logger.debug("the progress of batches cannot be published: %s", error)


def _write(current: list[Feeder], published: set[str], client: Any) -> list[Feeder]:
    """Publish how far each batch is; those that somebody has cancelled."""
    now = time.time()
    with client.pipeline(transaction=False) as pipe:
        for feeder in current:
            pipe.exists(cancellation.CANCEL_KEY + feeder.batch.id)
        for feeder in current:
            far = feeder.batch.progress()
            if far.seconds < EVERY:
                continue
            note = BatchNote(
                feeder.batch.id, feeder.order.function.name, feeder.order.queue, far.total, far.sent, far.done,
                far.failed, far.retries, round(far.seconds, 1), now, f"{platform.node()}/{os.getpid()}",
            )  # fmt: skip
            pipe.set(NOTE + note.id, json.dumps(asdict(note)), ex=EXPIRES)
            pipe.zadd(BATCHES, {note.id: now})
            published.add(note.id)
        for gone in published - {feeder.batch.id for feeder in current}:
            pipe.delete(NOTE + gone)
            pipe.zrem(BATCHES, gone)
            published.discard(gone)
        pipe.zremrangebyscore(BATCHES, 0, now - 10 * EXPIRES)
        flags = pipe.execute()[: len(current)]
    cancelled = [feeder for feeder, flag in zip(current, flags, strict=True) if flag]
    return [feeder for feeder in cancelled if not feeder.is_finished]


@atexit.register
def _withdraw() -> None:
    """This process ends: nobody waits for its batches any more."""
    watched = existing(_Watched)
    if watched is not None and watched.published:
        try:
            with connect(client_name="graft-progress", socket_timeout=EVERY) as client:
                client.delete(*(NOTE + name for name in watched.published))
                client.zrem(BATCHES, *watched.published)
        except (redis.RedisError, OSError) as error:
            logger.debug("the end of batches cannot be published: %s", error)
