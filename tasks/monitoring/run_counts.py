"""Counts what runs in this process: items by callable or task, and how plain Celery tasks end.

Totals of envelopes go to Redis with each run (function_stats.py). Those of plain tasks are added up here and go there
now and then.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Final

from graft.config.deployment import part

PLAIN: Final = "graft:health:plain"
PLAIN_NAMES: Final = ("items", "errors", "retries")


class RunCounts:
    """Counts for one process. They are taken for every run, so they must cost next to nothing."""

    def __init__(self) -> None:
        self.total = 0  # Items in the life of the process.
        self._lock = threading.Lock()
        self._recent: Counter[str] = Counter()
        self._plain: Counter[str] = Counter()

    def note(self, name: str, items: int = 1) -> None:
        """Count *items* of *name*."""
        with self._lock:
            self._recent[name] += items
            self.total += items

    def note_plain(self, *names: str) -> None:
        """Count the end of a plain task in each of *names* (``PLAIN_NAMES``)."""
        with self._lock:
            self._plain.update(names)

    def take(self, most: int = 20) -> dict[str, int]:
        """The items that ran since the last call, of the *most* frequent names; the count starts anew."""
        with self._lock:
            taken, self._recent = self._recent, Counter()
        return dict(taken.most_common(most))

    def add_plain_to(self, client: Any) -> None:
        """Add the counts of plain tasks to the deployment's; they start anew."""
        with self._lock:
            counts, self._plain = self._plain, Counter()
        if counts:
            with client.pipeline(transaction=False) as pipe:
                for name, count in counts.items():
                    pipe.hincrby(PLAIN, name, count)
                pipe.execute()


def run_counts() -> RunCounts:
    """The counts of this process."""
    return part(RunCounts)


def plain_totals(client: Any) -> dict[str, int]:
    """Totals of plain tasks in the whole deployment."""
    counts = client.hmget(PLAIN, *PLAIN_NAMES)
    return {name: int(count or 0) for name, count in zip(PLAIN_NAMES, counts, strict=True)}
