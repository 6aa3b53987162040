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

from graft.config.redis_client import connect, shared
from graft.tasks.delivery import run_counter

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


def watch(feeder: Feeder) -> None:
    """Tell of this feeder's batch until it is done. Returns at once."""
    global _thread
    if feeder in _feeders or not feeder.batch.is_told:
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
    told = _told
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
            for feeder in _write(current, told, client):
                feeder.batch.cancel()
        except (redis.RedisError, OSError) as error:
            logger.debug("the progress of batches cannot be told: %s", error)


def _write(current: list[Feeder], told: set[str], client: Any) -> list[Feeder]:
    """Tell how far each batch is; those that somebody has cancelled."""
    now = time.time()
    with client.pipeline(transaction=False) as pipe:
        for feeder in current:
            pipe.exists(run_counter.CANCEL_KEY + feeder.batch.id)
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
        flags = pipe.execute()[: len(current)]
    cancelled = [feeder for feeder, flag in zip(current, flags, strict=True) if flag]
    return [feeder for feeder in cancelled if not feeder.is_finished]


_lock = threading.Lock()
_feeders: WeakSet[Feeder] = WeakSet()
_told: set[str] = set()
_thread: threading.Thread | None = None


@atexit.register
def _take_leave() -> None:
    """This process ends: nobody waits for its batches any more."""
    if _told:
        try:
            with connect(client_name="graft-progress", socket_timeout=EVERY) as client:
                client.delete(*(NOTE + name for name in _told))
                client.zrem(BATCHES, *_told)
        except (redis.RedisError, OSError) as error:
            logger.debug("the end of batches cannot be told: %s", error)


def _forget() -> None:
    global _lock, _feeders, _told, _thread
    _lock, _feeders, _told, _thread = threading.Lock(), WeakSet(), set(), None


os.register_at_fork(after_in_child=_forget)
