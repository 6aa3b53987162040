"""Lets others see the batches of this process: a note in Redis each second, for those that take longer than one.

A batch lives with its caller, so its caller tells; a note that is not renewed expires.
"""

from __future__ import annotations

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

from graft.config.redis_client import connect, shared

if TYPE_CHECKING:
    from graft.tasks.feeder import Feeder

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


def watch(feeder: Feeder) -> None:
    """Tell of this feeder's batch until it is done. Returns at once."""
    global _thread
    if feeder in _feeders:
        return
    with _lock:
        _feeders.add(feeder)
        if _thread is None:
            _thread = threading.Thread(target=_tell, name="graft-progress", daemon=True)
            _thread.start()


def running(client: Any = None) -> list[BatchNote]:
    """The batches that somebody waits for now, the oldest first."""
    client = client or shared()
    names = client.zrangebyscore(BATCHES, time.time() - EXPIRES, "+inf")
    texts = client.mget([NOTE + name.decode() for name in names]) if names else []
    return sorted((BatchNote(**json.loads(text)) for text in texts if text), key=lambda note: -note.seconds)


def _tell() -> None:
    global _thread
    told: set[str] = set()
    client = connect(client_name="graft-progress")
    while True:
        time.sleep(EVERY)
        with _lock:
            current = [feeder for feeder in _feeders if not feeder.batch.done()]
            for feeder in set(_feeders) - set(current):
                _feeders.discard(feeder)
            if not current and not told:
                _thread = None
                client.close()
                return
        try:
            _write(current, told, client)
        except (redis.RedisError, OSError) as error:
            logger.debug("the progress of batches cannot be told: %s", error)


def _write(current: list[Feeder], told: set[str], client: Any) -> None:
    now = time.time()
    with client.pipeline(transaction=False) as pipe:
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
            told.add(note.id)
        for gone in told - {feeder.batch.id for feeder in current}:
            pipe.delete(NOTE + gone)
            pipe.zrem(BATCHES, gone)
            told.discard(gone)
        pipe.zremrangebyscore(BATCHES, 0, now - 10 * EXPIRES)
        pipe.execute()


_lock = threading.Lock()
_feeders: WeakSet[Feeder] = WeakSet()
_thread: threading.Thread | None = None


def _forget() -> None:
    global _lock, _feeders, _thread
    _lock, _feeders, _thread = threading.Lock(), WeakSet(), None


os.register_at_fork(after_in_child=_forget)
