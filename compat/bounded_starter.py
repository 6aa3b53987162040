"""Starts calls in the order in which they were added, a bounded number at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from graft.compat.futures import CallFuture
from graft.tasks.errors import BrokerUnavailable

Start = Callable[[], object]  # Makes the call of a future.


class BoundedStarter:
    """At most *limit* of the calls that were added run at once; any thread may add."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[tuple[CallFuture, Start]] = deque()
        self._running = 0
        self._is_starting = False

    def add(self, future: CallFuture, start: Start) -> None:
        """Call *start*, which makes the call of *future*, when there is room, on whatever thread makes room."""
        self._waiting.append((future, start))
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Start as many as fit. A call that ends at once comes back here from its callback; the flag ends that."""
        with self._lock:
            if self._is_starting:
                return
            self._is_starting = True
        try:
            while True:
                with self._lock:
                    if self._running >= self._limit or not self._waiting:
                        self._is_starting = False
                        return
                    future, start = self._waiting.popleft()
                    self._running += 1
                start()
                future.add_done_callback(self._ended)
        except BaseException:
            self._is_starting = False
            raise

    def _ended(self, future: Future[Any]) -> None:
        outage = None if future.cancelled() else future.exception()
        waiting: list[tuple[CallFuture, Start]] = []
        with self._lock:
            self._running -= 1
            if isinstance(outage, BrokerUnavailable):
                # What waits would try the same broker, one after the other, and wait for it as long each time.
                waiting, self._waiting = list(self._waiting), deque()
        for each, _ in waiting:
            if outage is not None and not each.cancelled():
                each.fail(outage)
        self._start_waiting()
