"""Single calls: each returns a future at once, and calls of one callable that come close together share envelopes.

Nothing waits to be joined: a call leaves as soon as the publisher is free, with all that have gathered meanwhile. What
has not left yet can still be cancelled, and waits in this process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graft.config.deployment import part, settings
from graft.tasks import codec
from graft.tasks.batch import Batch
from graft.tasks.envelope import Outcome
from graft.tasks.ids import new_id
from graft.tasks.sending.batch_sender import Feeder, Order
from graft.tasks.sending.call_future import Call
from graft.tasks.sending.publisher import publisher

LINES: Final = 256  # Callables that keep a line of their own while they are idle.


class CallSource:
    """Calls as pickles, in the order in which they were made; open for as long as its line lives."""

    encoded = True
    eager = True
    ahead: int | None = None
    error: BaseException | None = None

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._is_closed = False

    def add(self, frame: bytes) -> None:
        self._frames.append(frame)

    def take(self, size: int) -> Sequence[bytes]:
        return [self._frames.popleft() for _ in range(min(size, len(self._frames)))]

    def close(self) -> None:
        self._is_closed = True
        self._frames.clear()

    @property
    def remaining(self) -> int | None:
        return 0 if self._is_closed else None

    @property
    def ready(self) -> int:
        return len(self._frames)

    @property
    def is_empty(self) -> bool:
        return self._is_closed


class Line(Batch):
    """An endless batch that answers futures instead of keeping outcomes."""

    is_told = False

    def __init__(self, order: Order) -> None:
        super().__init__(new_id(), None)
        self.source = CallSource()
        self.feeder = Feeder(self, self.source, order, publisher().wake)
        self._made = 0
        self._futures: dict[int, Call] = {}
        self._lock = threading.Lock()
        self._is_broken = False

    def call(self, frame: bytes, future: Call) -> bool:
        """Make one more call, which *future* is told of; False when this line has failed and another must be made."""
        with self._lock:
            if self._is_broken:
                return False
            self._futures[self._made] = future
            self._made += 1
            self.source.add(frame)
        publisher().wake(self.feeder)
        return True

    @property
    def unread(self) -> int:
        return 0

    @property
    def is_idle(self) -> bool:
        return not self._futures

    def begin(self, position: int) -> bool:
        """The call at *position* leaves now, unless it was cancelled."""
        with self._lock:
            future = self._futures.get(position)
            if future is not None and not future.begin():
                del self._futures[position]
                return False
            return future is not None

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        with self._lock:
            answered = [(self._futures.pop(outcome.index, None), outcome) for outcome in outcomes]
        for future, outcome in answered:
            if future is not None:
                future.answer(outcome)

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        self.note_outcomes(list(map(Outcome, positions, values)))

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._is_broken = True
            futures, self._futures = self._futures, {}
        for future in futures.values():
            if future.running() or future.begin():
                future.answer(Outcome(0, error=error))


class _Lines:
    """The lines of this process, by what they carry; the one used last is the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_order: OrderedDict[Order, Line] = OrderedDict()

    def get(self, order: Order) -> Line:
        with self.lock:
            line = self.by_order.get(order)
            if line is None:
                line = self.by_order[order] = Line(order)
                idle = [key for key, other in self.by_order.items() if other.is_idle and other is not line]
                for key in idle[:-LINES]:
                    del self.by_order[key]
            return line

    def drop(self, order: Order, line: Line) -> None:
        """*line* has failed."""
        with self.lock:
            if self.by_order.get(order) is line:
                del self.by_order[order]


def call(order: Order, args: Sequence[Any], kwargs: Mapping[str, Any], future: Call | None = None) -> Call:
    """Call ``func(*args, **kwargs)`` on a worker, as *order* says; returns *future*, or a new one, at once.

    It is running once the call has left this process, and can be cancelled before.

    Raises:
        UnpicklableError, PayloadTooLargeError: an argument cannot travel.
    """
    frame = codec.dump_item((tuple(args), dict(kwargs)), settings().item_limit, "the arguments of the call")
    future, lines = future or Call(), part(_Lines)
    while True:
        line = lines.get(order)
        if line.call(frame, future):
            return future
        lines.drop(order, line)
