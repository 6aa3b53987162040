"""The time of the deployment: Redis's own, which all its machines share, carried on by a clock that nobody can set.

Whatever one process writes and another one judges (when a message was made, is due, expires, or was buried) has this
time. A clock of day that is wrong, or jumps while the process runs, moves none of it.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Final

import redis

from graft.config.deployment import part
from graft.config.redis_client import broker, server_time

logger = logging.getLogger(__name__)

# Goes on while the machine sleeps, and is the same for all processes. macOS has it as its monotonic clock.
CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
ASKED_EVERY: Final = 60.0
ASKED_AGAIN: Final = 10.0  # After Redis gave no answer.
PATIENCE: Final = 2.0


class RedisClock:
    """How far Redis's time is ahead of this machine's :data:`CLOCK`."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        self._ask_at = 0.0
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """A pool process goes on with what its parent knows."""
        self._lock = threading.Lock()

    def now(self) -> float:
        """Redis's time in seconds since the epoch; this machine's while Redis has never answered."""
        if running() >= self._ask_at and self._lock.acquire(blocking=self._ahead is None):
            try:
                if running() >= self._ask_at:  # And nobody has asked while this thread waited.
                    self._ask()
            finally:
                self._lock.release()
        return time.time() if self._ahead is None else running() + self._ahead

    def _ask(self) -> None:
        before = running()
        try:
            with broker(socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE) as client:
                client.ping()  # What follows takes one round trip, and not those of connecting.
                before = running()
                answer = server_time(client)
                self._ahead = answer - (before + running()) / 2
        except (redis.RedisError, OSError) as error:
            logger.debug("Redis did not say what time it is: %r", error)
            self._ask_at = running() + ASKED_AGAIN
        else:
            self._ask_at = running() + ASKED_EVERY


def running() -> float:
    """Seconds of this machine's clock that goes on evenly; the same for all its processes."""
    return time.clock_gettime(CLOCK)


def now() -> float:
    """Redis's time in seconds since the epoch, without asking it each time; it is followed within a minute."""
    return part(RedisClock).now()


def today() -> datetime:
    """The same as a datetime in UTC."""
    return datetime.fromtimestamp(now(), UTC)
