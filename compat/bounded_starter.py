"""Starts what waits in order, a bounded number at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Start = Callable[[], Future[Any] | None]  # What it started, or None: it is not wanted any more.


class Turns:
    """No more than *most* of what was added are under way at once; any thread may add."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: deque[Start] = deque()
        self._under_way = 0
        self._is_starting = False

    def add(self, start: Start) -> None:
        """Call *start* when it has its turn, on whatever thread makes room."""
        self._waiting.append(start)
        self._go_on()

    def _go_on(self) -> None:
        """Start as many as may be.

        What ends at once brings us back here from its own callback: the flag makes that a loop.
        """
        with self._lock:
            if self._is_starting:
                return
            self._is_starting = True
        try:
            while True:
                with self._lock:
                    if self._under_way >= self._most or not self._waiting:
                        self._is_starting = False
                        return
                    start = self._waiting.popleft()
                    self._under_way += 1
                started = start()
                if started is None:
                    self._ended()
                else:
                    started.add_done_callback(self._ended)
        except BaseException:
            self._is_starting = False
            raise

    def _ended(self, _: object = None) -> None:
        with self._lock:
            self._under_way -= 1
        self._go_on()
