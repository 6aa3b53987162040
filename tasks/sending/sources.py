"""Where a batch's items come from: a sequence cut where it stands, or an iterator that is read ahead, bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol


class Source(Protocol):
    """Items in order. ``remaining`` is None while the end is not known, 0 once everything was taken.

    ``encoded``: it holds pickles of the items. ``eager``: what is there leaves at once, however little it is.
    ``ahead`` is how many items it may read before they are taken; None where it reads nothing by itself.
    """

    ahead: int | None

    def take(self, size: int) -> Sequence[Any]: ...
    def positions(self, taken: int, size: int) -> Sequence[int]:
        """The positions of the *size* items that were taken last, when *taken* had been taken before."""

    def close(self) -> None: ...
    @property
    def encoded(self) -> bool: ...
    @property
    def eager(self) -> bool: ...
    @property
    def remaining(self) -> int | None: ...
    @property
    def ready(self) -> int: ...
    @property
    def error(self) -> BaseException | None: ...


class Numbered:
    """Items that are numbered as they are taken."""

    def positions(self, taken: int, size: int) -> Sequence[int]:
        return range(taken, taken + size)


class ListSource(Numbered):
    """A sequence, cut into slices. ``encoded`` says that it holds pickles of the items rather than the items."""

    eager = True
    ahead: int | None = None
    error: BaseException | None = None

    def __init__(self, items: Sequence[Any], *, encoded: bool = False) -> None:
        self.items = items
        self.encoded = encoded
        self.at = 0

    def take(self, size: int) -> Sequence[Any]:
        taken = self.items[self.at : self.at + size]
        self.at += len(taken)
        return taken

    def close(self) -> None:
        self.at = len(self.items)

    @property
    def remaining(self) -> int | None:
        return len(self.items) - self.at

    @property
    def ready(self) -> int:
        return len(self.items) - self.at


class IterSource(Numbered):
    """An iterator, endless perhaps, read ahead by a thread of its own: a slow one holds up only its own batch."""

    encoded = False
    eager = False

    def __init__(self, items: Iterable[Any], on_ready: Callable[[], None], ahead: int) -> None:
        self.error: BaseException | None = None
        self.ahead: int | None = ahead
        self._iterator = iter(items)
        self._on_ready = on_ready
        self._waiting: deque[Any] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="graft-source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        waiting = self._waiting
        try:
            for item in self._iterator:
                if len(waiting) >= (self.ahead or 0):
                    self._wait_for_room()
                if self._ended:
                    return
                waiting.append(item)  # Atomic, and the lock would cost as much as the rest.
                if len(waiting) == 1:  # Where it is none any more, somebody has looked since.
                    self._on_ready()
        except BaseException as error:  # The iterator is the caller's code; its error ends its own batch.
            self.error = error
        finally:
            with self._changed:
                self._ended = True
            self._on_ready()

    def _wait_for_room(self) -> None:
        with self._changed:
            while len(self._waiting) >= (self.ahead or 0) and not self._ended:
                self._changed.wait()

    def take(self, size: int) -> Sequence[Any]:
        with self._changed:
            taken = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            self._changed.notify()
        return taken

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify()

    @property
    def remaining(self) -> int | None:
        return len(self._waiting) if self._ended else None

    @property
    def ready(self) -> int:
        return len(self._waiting)
