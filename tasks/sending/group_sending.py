"""Sends the tasks of a Celery group many in one round trip, where Celery waits for Redis after each of them.

kombu's own ``Producer.batch()`` gives up at the first lost connection, without saying what has arrived. Here the same
messages are sent again under the same token, and Redis takes them once (push_once.lua).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import wraps
from typing import Any, Final

from celery.canvas import group
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from graft.config.deployment import settings
from graft.config.transport.channel import Channel
from graft.tasks.sending.producers import Producers, policy_until

MOST: Final = 100  # Messages in one round trip; what a signal or an error does to a group concerns so many.
MOST_BYTES: Final = 1 << 20


def install() -> None:
    """Have the groups of hardened apps sent so; those of others are left alone."""
    if not hasattr(group._apply_tasks, "__wrapped__"):
        group._apply_tasks = _many_at_once(group._apply_tasks)


def _many_at_once(one_by_one: Any) -> Any:
    @wraps(one_by_one)
    def apply_tasks(
        self: Any, tasks: Any, producer: Any = None, app: Any = None, *args: Any, **options: Any
    ) -> Iterator[Any]:
        app = app or self.app
        pool = app.amqp.producer_pool
        if not isinstance(pool, Producers) or app.amqp.is_observed():  # Of an app that is not hardened, or listened to.
            yield from one_by_one(self, tasks, producer, app, *args, **options)
            return
        with app.producer_or_acquire(producer) as taken:
            burst = _Burst(taken, pool, app.amqp.retry_policy)
            try:
                for result in one_by_one(self, tasks, taken, app, *args, **options):
                    burst.send_if_large()
                    yield result
            finally:
                burst.end()

    return apply_tasks


class _Burst:
    """The messages of one group that have not been sent yet."""

    def __init__(self, producer: Any, pool: Producers, retry_policy: Mapping[str, Any]) -> None:
        self._producer = producer
        self._pool = pool
        self._retry_policy = retry_policy
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._seen = self._bytes = 0
        self._gather(self._messages)

    def _gather(self, messages: list[tuple[str, dict[str, Any]]] | None) -> None:
        channel = self._producer.channel
        if isinstance(channel, Channel):
            channel.gathered = messages

    def send_if_large(self) -> None:
        for _, message in self._messages[self._seen :]:
            self._bytes += len(message["body"])
        self._seen = len(self._messages)
        if self._seen >= MOST or self._bytes >= MOST_BYTES:
            self._send()

    def end(self) -> None:
        """Send the rest, also when the group breaks off: Celery would have sent what came before."""
        self._gather(None)
        self._send()

    def _send(self) -> None:
        messages, self._messages[:] = self._messages[:], []
        self._seen = self._bytes = 0
        if not messages:
            return
        token = uuid()

        def push() -> None:
            self._producer.channel.push_once(messages, token)

        policy = policy_until(time.monotonic() + settings().connect_timeout, self._retry_policy)
        try:
            self._producer.connection.ensure(self._producer, push, **policy)()
        except OperationalError as error:
            self._pool.note_failure(error)
            raise
        self._pool.note_sent()
