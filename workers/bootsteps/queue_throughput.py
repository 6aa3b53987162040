"""Counts the messages that this worker takes, by queue, and notes who sends them without a signature.

A queue's length does not say how fast it is emptied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from celery import signals

from graft.config.transport import signing
from graft.tasks.monitoring import unsigned_senders
from graft.tasks.queues import throughput
from graft.workers.bootsteps.periodic import PeriodicStep

_taken: Counter[str] = Counter()
_unsigned: set[str] = set()


def note(queues: Mapping[str, int], unsigned: Iterable[str]) -> None:
    """Add what pool processes have taken themselves."""
    _taken.update(queues)
    _unsigned.update(unsigned)


@signals.task_received.connect
def _note(request: Any = None, **_: Any) -> None:
    _taken[str((getattr(request, "delivery_info", None) or {}).get("routing_key"))] += 1
    headers = getattr(request, "request_dict", None) or {}
    if signing.HEADER not in headers:
        _unsigned.add(str(headers.get("origin"))[:255])


class QueueThroughput(PeriodicStep):
    """Adds this worker's counts to those of all, each second in which there were any."""

    every = patience = 1.0

    def tick(self, consumer: Any) -> None:
        if _taken:
            throughput.add_taken(consumer.hostname, _taken, self._client)
            _taken.clear()  # Not where Redis did not answer: they are added with the next ones.
        if _unsigned:
            unsigned_senders.note(_unsigned, self._client)
            _unsigned.clear()
