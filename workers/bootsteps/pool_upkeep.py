"""Twice a second: replaces dead pool processes, gives back what they ran, and forgets time limits that are over."""

from __future__ import annotations

import heapq
from typing import Any, Final

from celery import bootsteps

EVERY: Final = 0.5
FEW: Final = 500  # Entries that a timer may hold before it is searched for cancelled ones.


class PoolUpkeep(bootsteps.StartStopStep):
    """Celery checks every 5 s (5.7, asynpool): a message that kills its process would take as long for each run."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._kept = 0

    def start(self, consumer: Any) -> None:
        if consumer.hub is not None:  # Threads do not die, and solo is the worker itself.
            self._timer = consumer.timer.call_repeatedly(EVERY, self._tend, (consumer,))

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    shutdown = stop

    def _tend(self, consumer: Any) -> None:
        if len(consumer.timer) > 2 * self._kept + FEW:
            self._kept = drop_cancelled(consumer.timer)
        consumer.pool.maintain_pool()


def drop_cancelled(timer: Any) -> int:
    """Take the cancelled entries out of *timer*; how many are left.

    kombu (5.7) keeps a cancelled entry until it is due. Each task arms its time limits, an hour ahead by default, so a
    worker would hold an hour's tasks: 0.56 KB for each message, a gigabyte at 500 messages a second.
    """
    timer._queue[:] = [scheduled for scheduled in timer._queue if not scheduled.entry.canceled]
    heapq.heapify(timer._queue)
    return len(timer._queue)
