"""Runs that Celery has no request for: those of pool processes that take their messages themselves, for a moment.

Whoever is about to look at Celery's active requests asks for them first.
"""

from __future__ import annotations

from collections.abc import Callable

from graft.config.deployment import existing, part


class _Unseen:
    def __init__(self) -> None:
        self.reveal: Callable[[], None] = lambda: None


def revealed_by(reveal: Callable[[], None]) -> None:
    """Have *reveal* make a request for each such run."""
    part(_Unseen).reveal = reveal


def reveal() -> None:
    """Have each run of this worker among Celery's active requests."""
    unseen = existing(_Unseen)
    if unseen is not None:
        unseen.reveal()
