"""Runs that Celery has no request for: those of pool processes that take their messages themselves, for a moment.

Whoever is about to look at Celery's active requests asks for them first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from graft.config.deployment import existing, part


class ActiveRun(NamedTuple):
    """A run that goes on: of which task, in which retry, and under which delivery."""

    task_id: str
    retries: int
    tag: str


class _Unseen:
    def __init__(self) -> None:
        self.runs: Callable[[], set[ActiveRun]] = set
        self.reveal: Callable[[], None] = lambda: None


def revealed_by(reveal: Callable[[], None], runs: Callable[[], set[ActiveRun]]) -> None:
    """Have *reveal* make a request for each such run; *runs* only looks."""
    unseen = part(_Unseen)
    unseen.reveal, unseen.runs = reveal, runs


def reveal() -> None:
    """Have each run of this worker among Celery's active requests."""
    unseen = existing(_Unseen)
    if unseen is not None:
        unseen.reveal()


def unseen() -> set[ActiveRun]:
    """The runs that have no request yet. Takes no lock, so that the handler of a signal may ask."""
    known = existing(_Unseen)
    return set() if known is None else known.runs()
