"""Learns within a quarter of a second what was cancelled, for all processes of this worker; idle, within a second."""

from __future__ import annotations

from typing import Any, Final

from celery.worker import state

from graft.tasks.delivery.cancellation import keep_filter
from graft.workers.bootsteps.heartbeat import unseen_runs
from graft.workers.bootsteps.periodic import PeriodicStep

IDLE_TICKS: Final = 4  # A worker that holds no message asks at each of these.


class CancelFilter(PeriodicStep):
    """Keeps the worker's filter of cancelled batches and tasks up to date."""

    every = 0.25
    patience = 1.0
    ticks_at_once = True
    is_beside_tasks = True

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._ticks = 0

    def tick(self, consumer: Any) -> None:
        self._ticks += 1
        if self._ticks % IDLE_TICKS == 1 or holds_messages(consumer):
            keep_filter().update(self._client)


def holds_messages(consumer: Any) -> bool:
    """Whether the worker has messages that run, wait for a process, or for their time."""
    channel = getattr(getattr(consumer, "task_consumer", None), "channel", None)
    is_held = state.reserved_requests or (channel is not None and channel.qos.outstanding())
    return bool(is_held or unseen_runs(consumer.pool))
