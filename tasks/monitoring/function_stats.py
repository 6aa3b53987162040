"""Totals of each callable in Redis, which the workers add up."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

import redis

from graft.config import keys, redis_clock
from graft.config.deployment import part
from graft.config.each_second import each_second
from graft.config.redis_client import shared
from graft.tasks.monitoring.run_counts import run_counts

logger = logging.getLogger(__name__)

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


def note(name: str, items: int, seconds: float) -> None:
    """Count a run of *items* without errors. Returns at once; Redis has it in a second."""
    run_counts().note(name, items)
    part(_Noted).add(name, items, seconds)


class _Noted:
    """The runs without errors that this process has ended and Redis does not know yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[int, float]] = {}
        each_second(self.write)

    def add(self, name: str, items: int, seconds: float) -> None:
        with self._lock:
            before = self._runs.get(name, (0, 0.0))
            self._runs[name] = before[0] + items, before[1] + seconds

    def write(self) -> None:
        with self._lock:
            runs, self._runs = self._runs, {}
        if not runs:
            return
        try:
            with shared().pipeline(transaction=False) as pipe:
                for name, (items, seconds) in runs.items():
                    _put(pipe, name, items, seconds)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            logger.debug("the figures of %d callables are not counted: %r", len(runs), error)


def add(pipe: Any, name: str, items: int, seconds: float, errors: int, retries: int = 0) -> None:
    """Count a run of *items*, on the caller's pipeline; *retries* of the *errors* will be run again."""
    run_counts().note(name, items)
    _put(pipe, name, items, seconds, errors, retries)


def _put(pipe: Any, name: str, items: int, seconds: float, errors: int = 0, retries: int = 0) -> None:
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
