"""Replaces dead pool processes, and gives back what they ran, within half a second."""

from __future__ import annotations

from typing import Any, Final

from celery import bootsteps

EVERY: Final = 0.5


class PoolUpkeep(bootsteps.StartStopStep):
    """Celery checks every 5 s (5.7, asynpool): a message that kills its process would take as long for each run."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        if consumer.hub is not None:  # Threads do not die, and solo is the worker itself.
            self._timer = consumer.timer.call_repeatedly(EVERY, consumer.pool.maintain_pool)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    shutdown = stop
