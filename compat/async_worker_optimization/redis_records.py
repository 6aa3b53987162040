"""The facades' own small records in this deployment's Redis.

Old code calls the facades from event loops and without a broker, so :func:`keep` writes behind the caller's back; what
a caller asks for by name goes through :func:`redis_or_error`.
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
from graft.config.deployment import existing, part, settings
from graft.config.redis_client import shared
from graft.tasks.errors import BrokerUnavailable

PREFIX: Final = "graft:compat:"
TTL: Final = 30 * 86400

T = TypeVar("T")

logger = logging.getLogger("graft.compat.async_worker_optimization")


class _Writer:
    """Writes what is kept, on a thread that ends when all is written. A forked child has nothing to write."""

    def __init__(self) -> None:
        self._pending: dict[str, Mapping[str, str | float]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, key: str, fields: Mapping[str, str | float]) -> None:
        with self._changed:
            self._pending[key] = fields  # The latest state is all that matters.
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="graft-compat-records", daemon=True)
                self._thread.start()

    def settle(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    self._thread = None
                    self._changed.notify_all()
                    return
                taken = dict(self._pending)
                self._pending.clear()
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
    """This deployment's Redis for a block; BrokerUnavailable names it when it does not answer."""
    try:
        yield shared()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BrokerUnavailable(f"{settings().broker_name} did not answer: {error}") from error


def keep(key: str, fields: Mapping[str, str | float]) -> None:
    """Write *fields* to the hash *key*, soon and best effort; returns at once.

    Local mode writes nothing, and a broker that does not answer is logged at debug level only: to old code the record
    is an extra that must cost it nothing.
    """
    if is_local():
        logger.debug("%s is not recorded: GRAFT_MODE=local", key)
        return
    part(_Writer).add(key, fields)


def settle(timeout: float) -> bool:
    """Wait until everything kept so far has been written or given up; False when that took longer."""
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
    """What *ask* answers within so many seconds, else *default*: a broker that hangs must not hang old code."""
    answers: list[T] = []
    asking = threading.Thread(target=lambda: answers.append(ask()), name="graft-compat-records", daemon=True)
    asking.start()
    asking.join(within)
    return answers[0] if answers else default


atexit.register(settle, 0.5)
