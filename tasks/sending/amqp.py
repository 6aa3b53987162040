"""Celery's way out, with what Celery lacks: our transport, a default priority, `overlap=`, a record of chords.

A receiver of Celery's signals could do the last three, but every message would have to take the slow road for it.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, Final

from celery import signals
from celery.app.amqp import AMQP
from kombu import Queue, pools
from kombu.exceptions import OperationalError

from graft.config.deployment import settings
from graft.config.transport import Transport, hardened
from graft.tasks.delivery import chord_records, outbox
from graft.tasks.queues import overlap
from graft.tasks.sending.producers import Producers, attempts, policy_until

OBSERVERS: Final = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)


@atexit.register
def _leave_subscriptions() -> None:
    """End without unsubscribing from each result on its own: the connection ends with the process.

    With Redis away each result that nobody had fetched tried to reconnect: 300 lines "Exception ignored in
    AsyncResult.__del__" for 20 results.
    """
    module: Any = sys.modules.get("celery.backends.asynchronous")
    if module is not None:
        module.AsyncBackendMixin.remove_pending_result = lambda backend, result: result


class Amqp(AMQP):
    """Sends what Celery sends, over the hardened transport."""

    def Connection(self, url: Any = None, *args: Any, **options: Any) -> Any:  # Celery's name.
        """A connection to the broker that the app is configured for; to a broker other than Redis, Celery's own."""
        url, options = hardened(url, options)
        return super().Connection(url, *args, **options)

    _producer_pool: Any

    @property
    def producer_pool(self) -> Any:
        """The producers of this process; for a broker other than Redis Celery's own."""
        if self._producer_pool is None:
            connection = self.app.connection_for_write()
            if issubclass(connection.get_transport_cls(), Transport):
                patience = attempts(settings().connect_timeout)
                connection.transport_options = {**connection.transport_options, **patience}
                self._producer_pool = Producers(pools.connections[connection], limit=self.app.pool.limit)
        return super().producer_pool

    publisher_pool = producer_pool

    def is_observed(self) -> bool:
        """Whether somebody wants to see each message, or to change it, before it leaves."""
        return self._announces or any(signal.receivers for signal in OBSERVERS)

    @cached_property
    def _announces(self) -> bool:  # Read once: each access to Celery's configuration costs half a message.
        return bool(self.app.conf.task_send_sent_event)

    @cached_property
    def retry_policy(self) -> dict[str, Any]:
        """How often the app has a message sent again that the broker did not take."""
        conf = self.app.conf
        return dict(conf.task_publish_retry_policy) if conf.task_publish_retry else {"max_retries": 0}

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Celery's way to send what follows from a run: here it leaves with the run's acknowledgement."""
        with outbox.kept_for_the_end():
            return super()._retry_publish(publish, *args, **options)

    @cached_property
    def _celery_sender(self) -> Callable[..., Any]:
        sender: Callable[..., Any] = super()._create_task_sender()
        return sender

    @cached_property
    def _middle(self) -> Any:
        return self.app.conf.task_default_priority

    def published(self, name: str, message: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """What Celery would give its producer for *message*."""
        priority = self._middle if options.get("priority") is None else options["priority"]
        recorded: dict[str, Any] = self._celery_sender(_Recorder, name, message, **{**options, "priority": priority})
        return recorded

    def _create_task_sender(self) -> Callable[..., Any]:
        send, middle = self._celery_sender, self._middle

        def send_task_message(producer: Any, name: str, message: Any, *args: Any, **options: Any) -> Any:
            # Celery applies task_default_priority where it knows the task; otherwise unset would be most urgent.
            if options.get("priority") is None:
                options["priority"] = middle
            headers, _, body, _ = message
            mode = options.pop("overlap", "allow")
            if mode != "allow" and not overlap.may_send(headers, body, mode, options):
                return None
            if headers.get("group") and (body[2] or {}).get("chord"):
                outbox.afterwards(partial(chord_records.note_part, headers, body))
            if (
                options.get("declare") is None
                and not self.is_observed()
                and _is_declared(options.get("queue"), producer)
            ):
                options["declare"] = []
            producers = self.producer_pool
            if not isinstance(producers, Producers):
                return send(producer, name, message, *args, **options)
            until = time.monotonic() + settings().connect_timeout
            options["retry_policy"] = policy_until(until, options.get("retry_policy"))
            try:
                sent = send(producer, name, message, *args, **options)
            except OperationalError as error:  # Anything else is that message's fault, and nobody else's.
                producers.note_failure(error)
                raise
            producers.note_sent()
            return sent

        return send_task_message


class _Recorder:
    """Stands for a producer, and publishes nothing."""

    @staticmethod
    def publish(body: Any, **how: Any) -> dict[str, Any]:
        return {**how, "body": body}


def _is_declared(queue: Any, producer: Any) -> bool:
    """Whether kombu has declared *queue* over this connection. It looks itself, with copies that take 50 us."""
    if not isinstance(queue, Queue) or not queue.can_cache_declaration:
        return False
    connection = producer.channel.connection
    return connection is not None and hash(queue) in connection.client.declared_entities
