"""Looks after the messages that the processes of the pool ``direct`` take themselves."""

from __future__ import annotations

import sys
from typing import Any, Final

from celery import bootsteps

from graft.config.transport.channel import Channel
from graft.workers.bootsteps import queue_throughput

EVERY: Final = 0.1


class DirectTaking(bootsteps.StartStopStep):
    """Has messages taken from the start of the consumer until it closes, except while there is no connection."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.events:Events")

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def include_if(self, consumer: Any) -> bool:
        direct = sys.modules.get("graft.workers.direct.direct_pool")  # A worker imports the pool that it has.
        return direct is not None and isinstance(consumer.pool, direct.TaskPool)

    def start(self, consumer: Any) -> None:
        channel = consumer.task_consumer.channel
        from graft.workers.direct.promotion import Promotion

        if consumer.promotion is None:
            consumer.promotion = Promotion(consumer.pool, consumer, queue_throughput.note)
        if isinstance(channel, Channel):
            consumer.promotion.use(channel)
            self._timer = consumer.timer.call_repeatedly(EVERY, consumer.promotion.tick, priority=10)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if consumer.blueprint.state == bootsteps.RUN and consumer.promotion is not None:  # The connection was lost.
            consumer.promotion.use(None)
