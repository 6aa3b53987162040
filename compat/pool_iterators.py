"""``imap`` and ``imap_unordered`` of a Pool: its iterator, and the thread that reads the input.

input ── InputReader: one thread, a window ahead ── calls on the workers ── IMapIterator ── its reader
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Final

from graft.compat.pool_results import terminated
from graft.tasks import blocking_threads

WINDOW: Final = 1_000  # Calls that are made ahead of the reader.


class InputReader:
    """Makes the calls of one ``imap``, and hands out those that have ended.

    As in multiprocessing, a thread of its own reads the input, which may be slow, wait for values that the iterator has
    given, or never end. *window* limits the calls that are made and not yet handed out.
    """

    def __init__(self, *, ordered: bool, window: int) -> None:
        self.is_left = self.is_over = False  # A finalizer may use these two, because it can take no locks.
        self._ordered = ordered
        self._room = window
        self._changed = threading.Condition()
        self._calls: deque[Future[Any]] = deque()  # In the order in which they were made, or else have ended.
        self._unread = 0
        self._ended = 0  # Of those.
        self._is_stalled = self._is_discarding = False
        self._error: BaseException | None = None

    def start(self, call: Callable[[Any], Future[Any]], items: Iterator[Any]) -> None:
        threading.Thread(target=self._make, args=(call, items), name="graft-imap", daemon=True).start()

    def take(self, timeout: float | None) -> Future[Any] | None:
        """The next call, which has ended; None when there are no more.

        Raises:
            multiprocessing.TimeoutError: no call had ended after *timeout* seconds.
            Exception: an error of the input, once, after all calls before it.
        """
        with self._changed:
            if not self._changed.wait_for(self._can_take, None if timeout is None else max(timeout, 0.0)):
                raise multiprocessing.TimeoutError(f"no value after {timeout:g} s")
            if not self._calls:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            self._unread -= 1
            self._ended -= 1
            self._room += 1
            self._is_stalled = False
            self._changed.notify_all()
            return self._calls.popleft()

    def discard(self) -> None:
        """Hand out no more calls, but go on making them."""
        with self._changed:
            self._is_discarding = True
            self._room += self._ended
            self._calls.clear()
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Make no more calls; the iterator raises *error* after those that were made."""
        with self._changed:
            if not self.is_over:
                self.is_over, self._error = True, error
                self._changed.notify_all()

    def wait_fed(self) -> None:
        """Wait until the input has ended, or no more of it is read before the iterator is read."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or (self._is_stalled and not self.is_left))

    def _can_take(self) -> bool:
        if self._calls:
            return not self._ordered or self._calls[0].done()
        return self.is_over and not self._unread

    def _make(self, call: Callable[[Any], Future[Any]], items: Iterator[Any]) -> None:
        try:
            while self._finds_room():
                self._add(call(next(items)))
        except StopIteration:
            self.end()
        except BaseException as error:  # The items are the caller's code.
            self.end(error)

    def _finds_room(self) -> bool:
        with self._changed:
            if not self._room:
                self._is_stalled = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._room or self.is_over)
            self._room -= 1
            return not self.is_over

    def _add(self, future: Future[Any]) -> None:
        with self._changed:
            self._unread += 1
            self._is_stalled = False
            if self._ordered and not self._is_discarding:
                self._calls.append(future)
        future.add_done_callback(self._note_end)

    def _note_end(self, future: Future[Any]) -> None:
        with self._changed:
            self._ended += 1
            if self._is_discarding:
                self._room += 1
            elif not self._ordered:
                self._calls.append(future)
            self._changed.notify_all()


class IMapIterator(Iterator[Any]):
    """The iterator of ``imap`` and ``imap_unordered``; any thread may read it.

    Stop iterating and no more input is read. Never start, and all of the input is still processed.
    """

    def __init__(self, reader: InputReader) -> None:
        self._reader = reader  # Its thread does not know this object.
        self._is_read = False

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next value, or the error of its call raised; iteration can go on after an error.

        Raises:
            multiprocessing.TimeoutError: no value after *timeout* seconds; try again later.
            CancelledBatchError: the pool was terminated before the call had ended.
            RuntimeError: the call raised StopIteration, which would end the iteration silently.
        """
        self._is_read = True
        future = self._reader.take(timeout)
        if future is None:
            raise StopIteration
        try:
            return future.result()
        except CancelledError:
            raise terminated() from None
        except StopIteration as error:
            raise RuntimeError("a call raised StopIteration") from error

    def __del__(self) -> None:
        self._reader.is_left = True
        if not (self._is_read and self._reader.is_over):
            blocking_threads.soon(self._reader.end if self._is_read else self._reader.discard)
