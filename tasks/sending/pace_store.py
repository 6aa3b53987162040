"""The pace of each callable in Redis, from which the next batch, here or in another process, learns its sizes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from graft.config import keys
from graft.tasks.sending.sizing import Pace

PACE: Final = keys.PACE
PACE_TTL: Final = 7 * 86400
# Yesterday's pace is a hint: it counts like this many items, so that a change shows within one envelope or two.
PACE_WEIGHT: Final = 4096.0


def load(name: str, client: Any) -> Pace:
    """The pace that the callable had when it was saved last."""
    items, seconds, size, waiting = client.hmget(PACE + name, "items", "seconds", "size", "waiting")
    if not items or not seconds or not size or not waiting:
        return Pace()
    return Pace(min(float(items), PACE_WEIGHT), float(seconds), float(size), float(waiting))


def save(name: str, pace: Pace, client: Any) -> None:
    if pace.items:
        with client.pipeline(transaction=False) as pipe:
            pipe.hset(PACE + name, mapping=asdict(pace))
            pipe.expire(PACE + name, PACE_TTL)
            pipe.execute()
