"""Obeys pauses: a queue that was paused (tasks/queue_control.py) is not read until it is resumed."""

from __future__ import annotations

import logging
from typing import Any, Final

import redis
from celery import bootsteps

from graft.config.redis_client import connect
from graft.tasks import queue_control

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 1.0


class Pauses(bootsteps.StartStopStep):
    """Looks every second; resumes only what it has paused itself, so that ``-Q`` and ``cancel_consumer`` stay true."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._client: Any = None
        self._mine: set[str] = set()

    def start(self, consumer: Any) -> None:
        self._client = connect(client_name="graft-pauses", socket_timeout=LOOK_EVERY)
        self._look(consumer)
        self._timer = consumer.timer.call_repeatedly(LOOK_EVERY, self._look, (consumer,), priority=10)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._client is not None:
            self._client.close()

    shutdown = stop

    def _look(self, consumer: Any) -> None:
        try:
            paused = queue_control.paused(self._client)
        except (redis.RedisError, OSError) as error:
            logger.debug("the pauses cannot be read, what is paused stays so: %s", error)
            return
        reads = set(consumer.app.amqp.queues.consume_from)
        for queue in (paused & reads) - {queue_control.NEVER}:
            logger.warning("queue %s is paused", queue)
            self._mine.add(queue)
            consumer.cancel_task_queue(queue)
        for queue in self._mine - paused:
            logger.warning("queue %s is resumed", queue)
            self._mine.discard(queue)
            consumer.add_task_queue(queue)
