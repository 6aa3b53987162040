"""Learns within a quarter of a second what was cancelled, for all processes of this worker."""

from __future__ import annotations

from typing import Any

from graft.tasks.delivery.cancellation import keep_filter
from graft.workers.bootsteps.periodic import PeriodicStep


class CancelFilter(PeriodicStep):
    """Keeps the worker's filter of cancelled batches and tasks up to date."""

    every = 0.25
    patience = 1.0
    ticks_at_once = True
    is_beside_tasks = True

    def tick(self, consumer: Any) -> None:
        keep_filter().update(self._client)
