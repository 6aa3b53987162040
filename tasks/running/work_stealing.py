"""Gives the items that a long envelope has not begun to processes that have nothing to do.

Sizes are learnt, so an envelope may turn out to hold far more work than it was meant to. One thread of this process
looks at the envelopes that run here. When one takes long, has items left, and nobody else's work waits in its queue,
what is left is sent on as new envelopes; its own item goes on undisturbed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger(__name__)

IDLE_AFTER: Final = 20  # Looks without any envelope, after which the thread sleeps until the next one.

Give = Callable[[list[int]], bool]


class Offer:
    """The items of one envelope that have not begun: its runner takes them from the left, this from the right."""

    def __init__(self, todo: deque[int], give: Give) -> None:
        self._todo = todo
        self._give = give
        self._giving = threading.Lock()
        self.began = time.monotonic()

    def share(self) -> None:
        """Give away what has not begun; what nobody took comes back."""
        with self._giving:
            places = drained(self._todo)
            if not places:
                return
            try:
                taken = self._give(places)
            except Exception as error:  # Such as a lost broker: the runner does it all, as it would have anyway.
                logger.warning("an envelope's items could not be shared: %r", error)
                taken = False
            if not taken:
                self._todo.extend(places)

    def is_exhausted(self) -> bool:
        """Whether nothing is left to run, now that nothing is on its way out either."""
        with self._giving:
            return not self._todo


def drained(todo: deque[int]) -> list[int]:
    """What was left in *todo*, which is empty now."""
    places: list[int] = []
    while True:
        try:
            places.append(todo.pop())
        except IndexError:
            return places[::-1]


class Sharer:
    """The thread that looks at the envelopes of this process."""

    def __init__(self) -> None:
        self._offers: dict[int, Offer] = {}
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._after = 1.0

    @contextmanager
    def offered(self, todo: deque[int], give: Give, after: float) -> Iterator[Offer]:
        """Offer *todo* to others once its runner has been at it for *after* seconds."""
        offer = Offer(todo, give)
        key = id(offer)
        self._after = after
        self._offers[key] = offer
        self._begun.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="graft-sharing", daemon=True)
            self._thread.start()
        try:
            yield offer
        finally:
            del self._offers[key]

    def _watch(self) -> None:
        idle = 0
        while True:
            time.sleep(self._after / 2)
            due = time.monotonic() - self._after
            offers: Sequence[Offer] = list(self._offers.values())
            for offer in offers:
                if offer.began < due:
                    offer.share()
            idle = 0 if offers else idle + 1
            if idle > IDLE_AFTER:
                self._begun.clear()
                if not self._offers:
                    self._begun.wait()
                idle = 0


_sharer = Sharer()


def sharer() -> Sharer:
    """This process's sharer."""
    return _sharer


def _renew() -> None:
    global _sharer
    _sharer = Sharer()


os.register_at_fork(after_in_child=_renew)
