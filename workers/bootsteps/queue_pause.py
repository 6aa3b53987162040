"""Obeys pauses: a queue that was paused (tasks/queues/pause.py) is not read until it is resumed."""

from __future__ import annotations

import logging
from typing import Any

from graft.config.deployment import app_name
from graft.tasks.delivery.cancellation import keep_filter
from graft.tasks.queues import pause
from graft.workers.bootsteps.periodic import PeriodicStep

logger = logging.getLogger(__name__)


class QueuePause(PeriodicStep):
    """Checks each second; resumes only queues that it has paused, so that ``-Q`` and ``cancel_consumer`` hold."""

    every = patience = 1.0
    ticks_at_once = True

    def tick(self, consumer: Any) -> None:
        paused = pause.paused(self._client)
        reads = set(consumer.app.amqp.queues.consume_from)
        for queue in (queue for queue in paused & reads if not pause.is_spared(queue)):
            logger.warning("queue %s is paused; to go on: celery -A %s queue resume %s", queue, app_name(), queue)
            consumer.cancel_task_queue(queue)
            consumer.paused_queues.add(queue)
        resumed = consumer.paused_queues - paused
        if resumed:  # What was cancelled during the pause is known before any of it is taken.
            keep_filter().update(self._client)
        for queue in resumed:
            logger.warning("queue %s is resumed", queue)
            consumer.paused_queues.discard(queue)
            consumer.add_task_queue(queue)
