"""The helper threads of a pool process in the model: each look of theirs is a move of its own.

They give away what a long envelope has not begun, tell of what has ended, and look whether it is cancelled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from graft.scripts.model.actors import Scheduler
from graft.tasks.envelope import Envelope
from graft.tasks.running import cancel_watch
from graft.tasks.running.cancel_watch import CancelWatch
from graft.tasks.running.work_stealing import Offer, Share, Sharer, Tell

LOCKED: Final = "lock"  # An actor waits for another of its own process.


class Lock:
    """A lock between two actors of one process: who waits for it stands still, and others go on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.is_taken = False
        self._scheduler = scheduler

    def __enter__(self) -> None:
        while self.is_taken:
            self._scheduler.stop(LOCKED)
        self.is_taken = True

    def __exit__(self, *_: object) -> None:
        self.is_taken = False


class OnDemand(Sharer):
    """Offers what runs in one pool process; the model says when to look."""

    def __init__(self, scheduler: Scheduler, offers: list[Offer]) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._open = offers

    @contextmanager
    def offered(self, todo: deque[int], share: Share | None, after: float, tell: Tell | None = None) -> Iterator[Offer]:
        offer = Offer(todo, share, tell)
        offer._sharing = Lock(self._scheduler)  # type: ignore[assignment]
        self._open.append(offer)
        try:
            yield offer
        finally:
            self._open.remove(offer)


class WatchOnDemand(CancelWatch):
    """Knows the runs of one pool process; the model says when to look at their flags."""

    @contextmanager
    def watching(self, envelope: Envelope, tell: Callable[[Any], None]) -> Iterator[None]:
        run = cancel_watch._Watched(envelope, tell)
        self._runs[id(run)] = run
        try:
            yield
        finally:
            del self._runs[id(run)]

    def look(self, client: Any) -> None:
        """Look at the flags of all runs, as the thread does five times a second."""
        cancel_watch._tell(list(self._runs.values()), client)
