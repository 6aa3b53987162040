"""Counts the messages that this worker takes, by queue: a queue's length does not say how fast it is emptied."""

from __future__ import annotations

from collections import Counter
from typing import Any

from celery import signals

from graft.tasks.queues import throughput
from graft.workers.bootsteps.periodic import PeriodicStep

_taken: Counter[str] = Counter()


@signals.task_received.connect
def _note(request: Any = None, **_: Any) -> None:
    _taken[str((getattr(request, "delivery_info", None) or {}).get("routing_key"))] += 1


class QueueThroughput(PeriodicStep):
    """Adds this worker's counts to those of all, each second in which there were any."""

    client_name = "graft-throughput"
    every = patience = 1.0

    def tick(self, consumer: Any) -> None:
        if _taken:
            throughput.add_taken(consumer.hostname, _taken, self._client)
            _taken.clear()  # Not where Redis did not answer: they are added with the next ones.
