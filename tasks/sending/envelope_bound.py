"""How many envelopes of one executor or pool are in flight at once, over all the functions that it calls.

An envelope runs one call at a time here, so as many calls run at once as envelopes are in flight.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Waiting(Protocol):
    """Whoever may have an envelope to send."""

    def wake(self) -> None: ...


class EnvelopeBound:
    """At most *limit* envelopes at once. Senders ask on the publisher's thread, and give back on the subscriber's."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: dict[Waiting, None] = {}

    def take(self, sender: Waiting) -> bool:
        """Whether *sender* may send one more envelope now; else it is woken when it may."""
        with self._lock:
            if self._taken >= self.limit:
                self._waiting[sender] = None
                return False
            self._taken += 1
            return True

    def give_back(self) -> None:
        """An envelope has been answered, or was not sent."""
        with self._lock:
            self._taken -= 1
            waiting, self._waiting = self._waiting, {}
        for sender in waiting:  # In the order in which they came; whoever comes too late waits again.
            sender.wake()
