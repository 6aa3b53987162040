"""Obeys pauses: a queue that was paused (tasks/queues/pause.py) is not read until it is resumed."""

from __future__ import annotations

import logging
from typing import Any

import redis

from graft.tasks.queues import pause
from graft.workers.bootsteps.pool_upkeep import PeriodicStep

logger = logging.getLogger(__name__)


class Pauses(PeriodicStep):
    """Looks every second; resumes only what it has paused itself, so that ``-Q`` and ``cancel_consumer`` stay true."""

    client_name = "graft-pauses"
    every = patience = 1.0
    ticks_at_once = True

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._mine: set[str] = set()

    def tick(self, consumer: Any) -> None:
        try:
            paused = pause.paused(self._client)
        except (redis.RedisError, OSError) as error:
            logger.debug("the pauses cannot be read, what is paused stays so: %s", error)
            return
        reads = set(consumer.app.amqp.queues.consume_from)
        for queue in (paused & reads) - {pause.NEVER}:
            logger.warning("queue %s is paused", queue)
            self._mine.add(queue)
            consumer.cancel_task_queue(queue)
        for queue in self._mine - paused:
            logger.warning("queue %s is resumed", queue)
            self._mine.discard(queue)
            consumer.add_task_queue(queue)
