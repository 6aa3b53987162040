"""Producers for `.delay()` and its like, which name a broker that does not answer instead of waiting for it.

Celery waits without bound for one of its ten producers, and each of those waits for its own attempts: with Redis
stopped 40 threads waited 40 s. Here a caller waits for a producer for as long as others send; once nobody has for
``connect_timeout``, or the attempt that it waited for has failed, it is told.

A producer is handed out connected, so the handshake counts too. Where nothing was sent just now the broker is asked
first: Celery would subscribe to the result before it sends, and try that six times.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from kombu import pools
from kombu.exceptions import LimitExceeded, OperationalError

from graft.config.deployment import settings
from graft.config.transport.channel import Channel

SLICE: Final = 0.25  # Seconds between two looks at whether others get through.
FRESH: Final = 0.5  # Seconds after a message was sent in which the broker is not asked whether it is there.


class Producers(pools.ProducerPool):
    """kombu's pool of producers, with a bound."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sent_at = self._failed_at = -math.inf
        self._failure: BaseException | None = None
        self._asking = threading.local()
        super().__init__(*args, **kwargs)

    def note_sent(self) -> None:
        """A message has just been sent."""
        self._sent_at = time.monotonic()

    def note_failure(self, error: BaseException) -> None:
        """A message could not be sent."""
        self._failed_at, self._failure = time.monotonic(), error

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """A producer; *timeout* bounds the wait for one whatever the others do.

        Raises:
            OperationalError: the broker takes no messages.
            LimitExceeded: all are in use, and *block* is false, or *timeout* is over.
        """
        began = self._asking.since = time.monotonic()
        while True:
            try:
                return super().acquire(block=block, timeout=SLICE if timeout is None else min(SLICE, timeout))
            except LimitExceeded:
                waited = time.monotonic() - began
                if not block or (timeout is not None and waited >= timeout):
                    raise
                self._refuse_if_stuck(began)

    def _refuse_if_stuck(self, began: float) -> None:
        patience = settings().connect_timeout
        has_failed = self._has_failed_since(began)
        if has_failed or time.monotonic() - max(began, self._sent_at) > patience:
            reason = self._failure if has_failed else f"none of {self.limit} producers has sent anything for that long"
            raise self.unavailable(patience, reason) from (self._failure if has_failed else None)

    def _has_failed_since(self, began: float) -> bool:
        return self._failed_at > max(began, self._sent_at)

    def unavailable(self, seconds: float, reason: object) -> OperationalError:
        """The error for a broker that takes no messages."""
        address = self.connections.connection.as_uri()
        return OperationalError(
            f"the broker {address} did not take a message within {seconds:g} s ({reason}); start it, or set "
            "CELERY_BROKER_URL; GRAFT_CONNECT_TIMEOUT is how long it may take"
        )

    def prepare(self, given: Any) -> Any:
        if self._has_failed_since(self._asking.since):  # While this thread waited for it; a connection is not needed.
            self._refuse_if_stuck(self._asking.since)
        producer = super().prepare(given)
        try:
            channel = producer.channel  # Connects.
            if isinstance(channel, Channel) and time.monotonic() - self._sent_at > FRESH:
                with channel.conn_or_acquire() as client:
                    client.ping()
        except BaseException as error:
            if callable(given):  # It is made anew the next time, with another connection.
                producer.__connection__.release()
            if isinstance(error, Exception):
                self.note_failure(error)
                raise self.unavailable(settings().connect_timeout, error) from error
            raise
        return producer

    def _acquire_connection(self) -> Any:
        began = self._asking.since
        while True:
            try:
                connection = self.connections.acquire(block=True, timeout=SLICE)
            except LimitExceeded:
                self._refuse_if_stuck(began)
                continue
            if self._has_failed_since(began):
                connection.release()
                self._refuse_if_stuck(began)
            return connection


def attempts(seconds: float) -> dict[str, Any]:
    """The transport's options for a connection whose attempts take *seconds* together."""
    return {
        "socket_timeout": seconds / 2, "connect_retries_timeout": seconds, "max_retries": 3,
        "interval_start": 0.0, "interval_step": 0.2, "interval_max": 1.0,
    }  # fmt: skip


def policy_until(deadline: float, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Celery's retry policy *given*, ended at *deadline* on this process's clock."""
    policy = dict(given or {})
    told = policy.get("errback")

    def tell(error: BaseException, interval: float) -> None:
        if told is not None:
            told(error, interval)
        if time.monotonic() + interval >= deadline:
            raise OperationalError(str(error)) from error

    return {**policy, "errback": tell}
