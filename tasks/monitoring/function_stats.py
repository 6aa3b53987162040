"""What is known of each callable, in Redis: totals that workers add up, and the pace that sizes are learnt from."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config.redis_client import shared
from graft.tasks.monitoring.run_counts import run_counts
from graft.tasks.sending.sizing import Pace

FIGURES: Final = "graft:figures:"
NAMES: Final = "graft:figures"
PACE: Final = "graft:pace:"
FIGURES_TTL: Final = 30 * 86400
PACE_TTL: Final = 7 * 86400
# Yesterday's pace is a hint: it counts like this many items, so that a change shows within one envelope or two.
PACE_WEIGHT: Final = 4096.0


@dataclass(frozen=True)
class Figures:
    """Totals of one callable on all workers. ``last`` is seconds since the epoch; ``retries`` are among the errors."""

    items: int = 0
    seconds: float = 0.0
    errors: int = 0
    last: float = 0.0
    retries: int = 0


def add(pipe: Any, name: str, items: int, seconds: float, errors: int, retries: int = 0) -> None:
    """Count a run of *items*, on the caller's pipeline; *retries* of the *errors* will be run again."""
    run_counts().note(name, items)
    key = FIGURES + name
    pipe.hincrby(key, "items", items)
    pipe.hincrbyfloat(key, "seconds", seconds)
    if errors:
        pipe.hincrby(key, "errors", errors)
    if retries:
        pipe.hincrby(key, "retries", retries)
    pipe.hset(key, "last", time.time())
    pipe.expire(key, FIGURES_TTL)
    pipe.sadd(NAMES, name)


def read(only: str | None = None) -> dict[str, Figures]:
    """The totals of every callable that ran on workers of this deployment, or of *only* one."""
    client = shared()
    names = sorted(name.decode() for name in client.smembers(NAMES)) if only is None else [only]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(FIGURES + name)
        records = pipe.execute()
    return {
        name: Figures(
            items=int(record.get(b"items", 0)),
            seconds=float(record.get(b"seconds", 0)),
            errors=int(record.get(b"errors", 0)),
            last=float(record.get(b"last", 0)),
            retries=int(record.get(b"retries", 0)),
        )
        for name, record in zip(names, records, strict=True)
        if record
    }


def load_pace(name: str, client: Any) -> Pace:
    """The pace that an earlier batch of this callable had, here or in another process."""
    items, seconds, size, waiting = client.hmget(PACE + name, "items", "seconds", "size", "waiting")
    if not items or not seconds or not size or not waiting:
        return Pace()
    return Pace(min(float(items), PACE_WEIGHT), float(seconds), float(size), float(waiting))


def save_pace(name: str, pace: Pace, client: Any) -> None:
    if pace.items:
        with client.pipeline(transaction=False) as pipe:
            pipe.hset(PACE + name, mapping=asdict(pace))
            pipe.expire(PACE + name, PACE_TTL)
            pipe.execute()
