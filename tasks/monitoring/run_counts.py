"""What ran in this process since somebody last asked: callable or task name -> items."""

from __future__ import annotations

import os
import threading
from collections import Counter

_lock = threading.Lock()
_ran: Counter[str] = Counter()
_total = 0


def note(name: str, items: int = 1) -> None:
    """Count *items* of *name*. Called for every run: it must cost next to nothing."""
    global _total
    with _lock:
        _ran[name] += items
        _total += items


def total() -> int:
    """Items that this process has run in its life."""
    return _total


def take(most: int = 20) -> dict[str, int]:
    """What ran most since the last call, at most so many names; the count starts anew."""
    global _ran
    with _lock:
        taken, _ran = _ran, Counter()
    return dict(taken.most_common(most))


def _renew() -> None:
    global _ran, _lock, _total
    _ran, _lock, _total = Counter(), threading.Lock(), 0


os.register_at_fork(after_in_child=_renew)
