"""ResultCollector: takes results in from many threads, in order of arrival."""

from __future__ import annotations

import threading

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import PoolClosedError


class ResultCollector:
    """Collects results once it has been started; at most *buffer_size* submitted ones wait to be taken in.

    Difference: ``close`` takes in what is left and may be called twice; the lesson panics.
    """

    def __init__(self, buffer_size: int) -> None:
        if buffer_size < 0:
            raise ValueError(f"buffer_size={buffer_size} must not be negative")
        self.buffer_size = buffer_size
        self._changed = threading.Condition()
        self._waiting: list[Result] = []
        self._taken: list[Result] = []
        self._is_started = self._is_closed = False

    def start(self) -> None:
        """Begin to take results in; a second call does nothing."""
        with self._changed:
            self._is_started = True
            self._take()

    def submit(self, result: Result) -> None:
        """Hand over *result*; waits while *buffer_size* results are unread, which they stay until ``start``.

        Raises:
            PoolClosedError: the collector is closed, or was closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(self._has_room)
            if self._is_closed:
                raise PoolClosedError
            self._waiting.append(result)
            if self._is_started:
                self._take()

    def get_results(self) -> list[Result]:
        """A copy of what has been taken in so far, in order of arrival."""
        with self._changed:
            return list(self._taken)

    def close(self) -> list[Result]:
        """Take in what is left and stop; all results, the same list of them at each call."""
        with self._changed:
            self._is_closed = True
            self._take()
            return list(self._taken)

    def _has_room(self) -> bool:
        return self._is_closed or self._is_started or len(self._waiting) < self.buffer_size

    def _take(self) -> None:
        self._taken += self._waiting
        self._waiting.clear()
        self._changed.notify_all()
