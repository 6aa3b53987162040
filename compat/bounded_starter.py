"""Starts calls in the order in which they were added, a bounded number at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Start = Callable[[], Future[Any]]  # Returns the future of the call.


class BoundedStarter:
    """At most *limit* of the calls that were added run at once; any thread may add."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[Start] = deque()
        self._running = 0
        self._is_starting = False

    def add(self, start: Start) -> None:
        """Call *start* when there is room, on whatever thread makes room."""
        self._waiting.append(start)
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
                    start = self._waiting.popleft()
                    self._running += 1
                start().add_done_callback(self._ended)
        except BaseException:
            self._is_starting = False
            raise

    def _ended(self, _: object) -> None:
        with self._lock:
            self._running -= 1
        self._start_waiting()
