"""The facades' own small records in this deployment's Redis.

Old code calls the facades from event loops and without a broker, so :func:`keep` writes in the background; records that
a caller names go through :func:`redis_or_error`.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import redis

from graft.compat.placement import is_local
from graft.config import keys
from graft.config.deployment import existing, part
from graft.config.redis_client import shared
from graft.tasks.shared.primitive import outage_is_unavailable

PREFIX: Final = keys.COMPAT
TTL: Final = 30 * 86400

T = TypeVar("T")

logger = logging.getLogger("graft.compat.async_worker_optimization")


class _Writer:
    """Writes records on a thread, which ends when all are written. A forked child has nothing to write."""

    def __init__(self) -> None:
        self._pending: dict[str, Mapping[str, str | float]] = {}
        self._changed = threading.Condition()
        self._is_writing = False

    def add(self, key: str, fields: Mapping[str, str | float]) -> None:
        with self._changed:
            self._pending[key] = fields  # Only the latest state matters.
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write, name="graft-compat-records", daemon=True).start()

    def settle(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_writing, timeout)

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                taken, self._pending = self._pending, {}
            try:
                with shared().pipeline(transaction=False) as pipe:
                    for key, fields in taken.items():
                        pipe.hset(key, mapping=dict(fields))
                        pipe.expire(key, TTL)
                    pipe.execute()
            except (redis.RedisError, OSError) as error:
                logger.debug("%s could not be recorded: %s", ", ".join(taken), error)


@contextmanager
def redis_or_error() -> Iterator[Any]:
    """This deployment's Redis for a block; an outage raises BrokerUnavailable with its address."""
    with outage_is_unavailable():
        yield shared()


def keep(key: str, fields: Mapping[str, str | float]) -> None:
    """Write *fields* to the hash *key* in the background, at best effort; returns at once.

    Nothing is written in local mode; an outage is only logged, at debug level.
    """
    if is_local():
        logger.debug("%s is not recorded: GRAFT_MODE=local", key)
        return
    part(_Writer).add(key, fields)


def settle(timeout: float) -> bool:
    """Wait until all records have been written or given up; False if that took longer."""
    writer = existing(_Writer)
    return writer is None or writer.settle(timeout)


def read(key: str) -> dict[str, str]:
    """The hash *key*, {} when there is none; blocks for one round trip.

    Raises:
        BrokerUnavailable: Redis does not answer.
    """
    settle(timeout=1.0)
    with redis_or_error() as client:
        return {field.decode(): value.decode() for field, value in client.hgetall(key).items()}


def soon(ask: Callable[[], T], default: T, *, within: float) -> T:
    """The answer of *ask* if it comes *within* so many seconds, else *default*: an outage must not block old code."""
    answers: list[T] = []
    asking = threading.Thread(target=lambda: answers.append(ask()), name="graft-compat-records", daemon=True)
    asking.start()
    asking.join(within)
    return answers[0] if answers else default


atexit.register(settle, 0.5)
