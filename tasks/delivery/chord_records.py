"""Which chords are under way: each is on record in Redis from its first part on, until its body has an answer.

Celery counts a part after its result was stored, in the process that ran it; a process that dies in between leaves a
chord that nobody completes. ``cleanup/chord_recovery.py`` finds those by this record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import redis
from kombu.utils.json import dumps

from graft.config import keys, redis_clock
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec, worker_runtime

logger = logging.getLogger(__name__)

CHORDS: Final = keys.CHORDS
CHORD: Final = keys.CHORD


def note(chord: str, body: Mapping[str, Any], parts: Mapping[int, str], *, is_watched: bool = False) -> None:
    """Put *chord*, its body and the ids of its *parts* by index on record."""
    key = CHORD + chord
    fields: dict[str, Any] = {f"part:{index}": part for index, part in parts.items()}
    if is_watched:
        fields["watched"] = 1
    with shared().pipeline(transaction=False) as pipe:
        pipe.hsetnx(key, "body", codec.seal(f"chord:{chord}", dumps(body).encode()))
        pipe.hset(key, mapping=fields)
        pipe.expire(key, int(settings().result_ttl))
        pipe.zadd(CHORDS, {chord: redis_clock.now()}, nx=True)
        pipe.execute()


def note_part(headers: Mapping[str, Any], body: Any) -> None:
    """Celery is about to send a part of a chord; one of somebody else's is put on record."""
    # The envelopes of a batch are on record before the first of them is sent (tasks/sending/chords.py).
    if headers["task"] == "graft.batch" or headers.get("group_index") is None or not settings().signing_keys:
        return
    try:
        note(headers["group"], body[2]["chord"], {headers["group_index"]: headers["id"]})
    except redis.RedisError as error:  # The worker puts it on record when it runs.
        logger.warning("chord %s could not be put on record: %s", headers["group"], error)


def note_run(task: Any = None, **_: Any) -> None:
    """A part is about to run here; its caller may not have this module, and have put nothing on record."""
    request = getattr(task, "request", None)
    if request is None or not request.chord or not request.group or task.name == "graft.batch":
        return
    if request.group_index is not None and settings().signing_keys:
        worker_runtime.off_loop(note, request.group, request.chord, {request.group_index: request.id})


def forget(chord: str) -> None:
    """Take *chord* off the record."""
    with shared().pipeline(transaction=False) as pipe:
        pipe.delete(CHORD + chord)
        pipe.zrem(CHORDS, chord)
        pipe.execute()
