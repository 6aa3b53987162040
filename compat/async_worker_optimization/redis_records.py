"""The facades' own small records in this deployment's Redis.

Old code calls the facades from event loops and without a broker, so :func:`keep` writes behind the caller's back; what
a caller asks for by name goes through :func:`redis_or_error`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import redis

from graft.compat import bridge
from graft.config.settings import settings
from graft.tasks.errors import BrokerUnavailable

PREFIX: Final = "graft:compat:"
TTL: Final = 30 * 86400

T = TypeVar("T")

logger = logging.getLogger("graft.compat.async_worker_optimization")

_pending: dict[str, Mapping[str, str | float]] = {}
_changed = threading.Condition()
_writer: threading.Thread | None = None


@contextmanager
def redis_or_error() -> Iterator[Any]:
    """This deployment's Redis for a block; BrokerUnavailable names it when it does not answer."""
    try:
        yield bridge.state()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BrokerUnavailable(f"{settings().broker_name} did not answer: {error}") from error


def keep(key: str, fields: Mapping[str, str | float]) -> None:
    """Write *fields* to the hash *key*, soon and best effort; returns at once.

    Local mode writes nothing, and a broker that does not answer is logged at debug level only: to old code the record
    is an extra that must cost it nothing.
    """
    global _writer
    if bridge.is_local():
        logger.debug("%s is not recorded: GRAFT_MODE=local", key)
        return
    with _changed:
        _pending[key] = fields  # The latest state is all that matters.
        if _writer is None:
            _writer = threading.Thread(target=_write, name="graft-compat-records", daemon=True)
            _writer.start()


def settle(timeout: float) -> bool:
    """Wait until everything kept so far has been written or given up; False when that took longer."""
    with _changed:
        return _changed.wait_for(lambda: _writer is None, timeout)


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


def _write() -> None:
    global _writer
    while True:
        with _changed:
            if not _pending:
                _writer = None
                _changed.notify_all()
                return
            taken = dict(_pending)
            _pending.clear()
        try:
            with bridge.state().pipeline(transaction=False) as pipe:
                for key, fields in taken.items():
                    pipe.hset(key, mapping=dict(fields))
                    pipe.expire(key, TTL)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            logger.debug("%s could not be recorded: %s", ", ".join(taken), error)


def _forget() -> None:
    """A forked child has neither the writer nor whoever held the lock."""
    global _changed, _writer
    _changed = threading.Condition()
    _writer = None
    _pending.clear()


os.register_at_fork(after_in_child=_forget)
atexit.register(settle, 0.5)
