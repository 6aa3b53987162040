"""Sends the tasks of a Celery group many in one round trip, where Celery waits for Redis after each of them.

Only those of a list: Celery sends the tasks of a generator as they come, and it may wait for them.

kombu's own ``Producer.batch()`` gives up at the first lost connection, without saying what has arrived. Here the same
messages are sent again under the same token, and Redis takes them once (push_once.lua).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
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
        is_whole = type(self.tasks) in (list, tuple)  # A generator, here a list too, may wait for what it has yielded.
        # An app may not be hardened, or be listened to.
        if not is_whole or not isinstance(pool, Producers) or app.amqp.is_observed():
            yield from one_by_one(self, tasks, producer, app, *args, **options)
            return
        with app.producer_or_acquire(producer) as taken:
            burst = _Burst(taken, pool, app.amqp.retry_policy)
            try:
                yield from one_by_one(self, burst.noting_results(tasks), taken, app, *args, **options)
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
        self._bytes = 0
        self._results: dict[str, Any] = {}  # Those that the group has made for tasks that are sent next.
        self._be_current(self)

    def _be_current(self, burst: _Burst | None) -> None:
        channel = self._producer.channel
        if isinstance(channel, Channel):
            channel.burst = burst

    def noting_results(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """The *tasks* of the group, each with the result that Celery makes for it once more when it is sent."""
        for each in tasks:
            if each[1] is not None:
                self._results[each[1].id] = each[1]
            yield each

    def result(self, task_id: str) -> Any:
        """The result of a task that is sent now, where the group has made it."""
        return self._results.pop(task_id, None)

    def add(self, queue: str, message: dict[str, Any]) -> None:
        """One more; a hundred leave together."""
        self._messages.append((queue, message))
        self._bytes += len(message["body"])
        if len(self._messages) >= MOST or self._bytes >= MOST_BYTES:
            self._send()

    def end(self) -> None:
        """Send the rest, also when the group breaks off: Celery would have sent what came before."""
        self._be_current(None)
        self._results.clear()
        self._send()

    def _send(self) -> None:
        messages, self._messages, self._bytes = self._messages, [], 0
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
