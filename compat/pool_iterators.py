"""``imap`` and ``imap_unordered`` of a Pool: its iterator, and the thread that reads the input.

input ── Feed: one thread, a window ahead ── calls on the workers ── IMapIterator ── reader
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, Final

from graft.compat.pool_results import terminated

ROOM, DISCARD, STOP = range(3)  # Signs to the thread: a call was handed out; nobody will read; make no more calls.
WINDOW: Final = 1_000  # Calls that are made ahead of the reader.


class Feed:
    """Makes the calls of one ``imap``, and hands out those that have ended.

    As in multiprocessing the input is read by another thread than its reader's: it may be slow, wait for values that
    its reader has had, or never end. *window* bounds the calls that are made and not yet handed out.
    """

    def __init__(self, *, ordered: bool, window: int) -> None:
        self._ordered = ordered
        self._room = window
        self._changed = threading.Condition()
        self._calls: deque[Future[Any]] = deque()  # In the order in which they were made, or else have ended.
        self._unread = 0
        self._ended = 0  # Of those.
        self._is_over = self._is_stalled = self._is_discarding = False
        self._error: BaseException | None = None
        self._signs: SimpleQueue[int] = SimpleQueue()

    def start(self, call: Callable[[Any], Future[Any]], items: Iterator[Any]) -> None:
        threading.Thread(target=self._make, args=(call, items), name="graft-imap", daemon=True).start()

    # ---- for the reader and the pool --------------------------------------------------------------------------------

    def take(self, timeout: float | None) -> Future[Any] | None:
        """The next call, which has ended; None when there are no more.

        Raises:
            multiprocessing.TimeoutError: there was none after *timeout* seconds.
            Exception: what the items raised, once, after all calls before it.
        """
        with self._changed:
            if not self._changed.wait_for(self._can_take, None if timeout is None else max(timeout, 0.0)):
                raise multiprocessing.TimeoutError(f"no value had come after {timeout:g} s")
            if not self._calls:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            future = self._calls.popleft()
            self._unread -= 1
            self._ended -= 1
            self._is_stalled = False
            self._changed.notify_all()  # Other readers: this may have been the last.
        self.sign(ROOM)
        return future

    def sign(self, sign: int) -> None:
        """Tell the thread. Takes no lock, because objects may be collected at any moment."""
        self._signs.put(sign)

    def end(self, error: BaseException | None = None) -> None:
        """There are no more items; *error* comes after the calls that were made."""
        with self._changed:
            if not self._is_over:
                self._is_over, self._error = True, error
                self._changed.notify_all()
        self.sign(STOP)

    def wait_fed(self) -> None:
        """Until the input has ended, or nothing more of it is read before its reader goes on."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or (self._is_stalled and not self._is_discarding))

    def _can_take(self) -> bool:
        if self._calls:
            return not self._ordered or self._calls[0].done()
        return self._is_over and not self._unread

    # ---- on its thread ----------------------------------------------------------------------------------------------

    def _make(self, call: Callable[[Any], Future[Any]], items: Iterator[Any]) -> None:
        try:
            while self._finds_room():
                self._add(call(next(items)))
        except StopIteration:
            self.end()
        except BaseException as error:  # The items are the caller's code.
            self.end(error)
        else:
            self.end()

    def _finds_room(self) -> bool:
        while not self._room or not self._signs.empty():
            if not self._room and self._signs.empty():
                with self._changed:
                    self._is_stalled = self._signs.empty()
                    self._changed.notify_all()
            sign = self._signs.get()
            if sign == STOP:
                return False
            if sign == ROOM:
                self._room += 1
            else:
                with self._changed:
                    self._is_discarding = True
                    self._room += self._ended
                    self._calls.clear()
        self._room -= 1
        return True

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
                self.sign(ROOM)
            elif not self._ordered:
                self._calls.append(future)
            self._changed.notify_all()


class IMapIterator(Iterator[Any]):
    """What ``imap`` and ``imap_unordered`` give; any thread may read it.

    Left after its first value, it stops reading its input. Dropped unread, all of its input is worked off.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed  # Whose thread does not know this object.
        self._is_read = False

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next value, or the error of its call raised; the value after it can still be had.

        Raises:
            multiprocessing.TimeoutError: it was not there after *timeout* seconds; it can still be had later.
            CancelledBatchError: the pool was terminated before the call had ended.
            RuntimeError: the call raised StopIteration, which would end the iteration in silence.
        """
        self._is_read = True
        future = self._feed.take(timeout)
        if future is None:
            raise StopIteration
        try:
            return future.result()
        except CancelledError:
            raise terminated() from None
        except StopIteration as error:
            raise RuntimeError("a call raised StopIteration") from error

    def __del__(self) -> None:
        self._feed.sign(STOP if self._is_read else DISCARD)
