"""What ran in this process since it was last asked: callable or task name -> items."""

from __future__ import annotations

import threading
from collections import Counter

from graft.config.deployment import part


class RunCounts:
    """Counts for one process. They are taken for every run, so they must cost next to nothing."""

    def __init__(self) -> None:
        self.total = 0  # Items in the life of the process.
        self._lock = threading.Lock()
        self._recent: Counter[str] = Counter()

    def note(self, name: str, items: int = 1) -> None:
        """Count *items* of *name*."""
        with self._lock:
            self._recent[name] += items
            self.total += items

    def take(self, most: int = 20) -> dict[str, int]:
        """What ran most since the last call, at most so many names; the count starts anew."""
        with self._lock:
            taken, self._recent = self._recent, Counter()
        return dict(taken.most_common(most))


def run_counts() -> RunCounts:
    """The counts of this process."""
    return part(RunCounts)
