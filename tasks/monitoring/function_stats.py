"""Totals of each callable in Redis, which the workers add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from graft.config import keys, redis_clock
from graft.config.redis_client import shared
from graft.tasks.monitoring.run_counts import run_counts

STATS: Final = keys.FUNCTION_STATS
NAMES: Final = keys.FUNCTIONS
STATS_TTL: Final = 30 * 86400


@dataclass(frozen=True)
class FunctionStats:
    """Totals of one callable on all workers. ``last`` is seconds since the epoch; ``retries`` are among the errors."""

    items: int = 0
    seconds: float = 0.0
    errors: int = 0
    last: float = 0.0
    retries: int = 0


class Ran(NamedTuple):
    """A run without errors, for the script that ends it. It is counted elsewhere where *items* are none."""

    name: str
    items: int
    seconds: float

    @property
    def keys(self) -> tuple[str, str]:
        return STATS + self.name, NAMES

    @property
    def arguments(self) -> tuple[str, int, float, float, int]:
        return self.name, self.items, self.seconds, redis_clock.now(), STATS_TTL


def add(pipe: Any, name: str, items: int, seconds: float, errors: int, retries: int = 0) -> None:
    """Count a run of *items*, on the caller's pipeline; *retries* of the *errors* will be run again."""
    run_counts().note(name, items)
    key = STATS + name
    pipe.hincrby(key, "items", items)
    pipe.hincrbyfloat(key, "seconds", seconds)
    if errors:
        pipe.hincrby(key, "errors", errors)
    if retries:
        pipe.hincrby(key, "retries", retries)
    pipe.hset(key, "last", redis_clock.now())
    pipe.expire(key, STATS_TTL)
    pipe.sadd(NAMES, name)


def read(only: str | None = None) -> dict[str, FunctionStats]:
    """The totals of every callable that ran on workers of this deployment, or of *only* one."""
    client = shared()
    names = sorted(name.decode() for name in client.smembers(NAMES)) if only is None else [only]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(STATS + name)
        records = pipe.execute()
    return {
        name: FunctionStats(
            items=int(record.get(b"items", 0)),
            seconds=float(record.get(b"seconds", 0)),
            errors=int(record.get(b"errors", 0)),
            last=float(record.get(b"last", 0)),
            retries=int(record.get(b"retries", 0)),
        )
        for name, record in zip(names, records, strict=True)
        if record
    }
