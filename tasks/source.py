"""Where a batch's items come from: a sequence cut where it stands, or an iterator that is read ahead, bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

READ_AHEAD = 10_000


class Source(Protocol):
    """Items in order. ``remaining`` is None while the end is not known.

    ``encoded``: it holds pickles of the items. ``eager``: what is there leaves at once, however little it is.
    """

    def take(self, size: int) -> Sequence[Any]: ...
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
    def is_empty(self) -> bool: ...
    @property
    def error(self) -> BaseException | None: ...


class ListSource:
    """A sequence, cut into slices. ``encoded`` says that it holds pickles of the items rather than the items."""

    eager = True
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

    @property
    def is_empty(self) -> bool:
        return self.at >= len(self.items)


class IterSource:
    """An iterator, endless perhaps, read ahead by a thread of its own: a slow one holds up only its own batch."""

    encoded = False
    eager = False

    def __init__(self, items: Iterable[Any], on_ready: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._iterator = iter(items)
        self._on_ready = on_ready
        self._waiting: deque[Any] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, name="graft-source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        try:
            for item in self._iterator:
                with self._changed:
                    while len(self._waiting) >= READ_AHEAD and not self._ended:
                        self._changed.wait()
                    if self._ended:
                        return
                    self._waiting.append(item)
                    first = len(self._waiting) == 1
                if first:
                    self._on_ready()
        except BaseException as error:  # The iterator is the caller's code; its error ends its own batch.
            self.error = error
        finally:
            with self._changed:
                self._ended = True
            self._on_ready()

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

    @property
    def is_empty(self) -> bool:
        return self._ended and not self._waiting
