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
from graft.tasks import blocking_threads, codec
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import Outcome
from graft.tasks.ids import new_id
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.call_future import Call
from graft.tasks.sending.envelope_bound import EnvelopeBound
from graft.tasks.sending.publisher import publisher
from graft.tasks.sending.sources import Numbered

IDLE_STREAMS: Final = 256  # Callables that keep a stream of their own while they make no calls.


class CallSource(Numbered):
    """Calls as pickles, in the order in which they were made; open for as long as its stream lives."""

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


class CallStream:
    """The calls of one callable with the same options: their outcomes go to futures. An OutcomeReceiver."""

    unread = 0  # No future waits for another one to be read.

    def __init__(self, options: BatchOptions) -> None:
        self.id = new_id()
        self.source = CallSource()
        self.sender: BatchSender[CallStream] = BatchSender(self, self.source, options, publisher().wake)
        self._made = 0
        self._futures: dict[int, Call] = {}
        self._lock = threading.Lock()
        self._is_broken = False

    def call(self, frame: bytes, future: Call) -> bool:
        """Make one more call, whose outcome *future* gets; False when this stream has failed and is to be replaced."""
        with self._lock:
            if self._is_broken:
                return False
            self._futures[self._made] = future
            self._made += 1
            self.source.add(frame)
        publisher().wake(self.sender)
        return True

    def cancel(self) -> None:
        """End all calls, those that run too, and make no more."""
        with self._lock:
            self._is_broken = True
        self.sender.cancel(running=True)

    def done(self) -> bool:
        """Whether no call is open."""
        return not self._futures

    def begin(self, position: int) -> bool:
        """The call at *position* leaves now, unless it was cancelled."""
        with self._lock:
            future = self._futures.get(position)
            if future is not None and not future.begin(self, position):
                del self._futures[position]
                return False
            return future is not None

    def withdraw(self, position: int) -> None:
        """Have workers not begin the call at *position*, which has been sent. Returns at once."""
        blocking_threads.soon(cancellation.cancel_items, self.id, [position], settings().result_ttl)

    def note_sent(self, items: int, envelopes: int = 1) -> None:
        """Nobody asks how far a stream of calls has come."""

    def note_total(self, total: int) -> None:
        """The stream was closed."""

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        with self._lock:
            ended = [(self._futures.pop(outcome.index, None), outcome) for outcome in outcomes]
        for future, outcome in ended:
            if future is not None:
                future.end(outcome)

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        self.note_outcomes(list(map(Outcome, positions, values)))

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._is_broken = True
            futures, self._futures = self._futures, {}
        for future in futures.values():
            if future.running() or future.begin():
                future.end(Outcome(0, error=error))


class _Streams:
    """The streams of this process, by what they carry; the one used last is the last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_options: OrderedDict[BatchOptions, CallStream] = OrderedDict()

    def get(self, options: BatchOptions) -> CallStream:
        with self.lock:
            stream = self.by_options.get(options)
            if stream is None:
                stream = self.by_options[options] = CallStream(options)
                idle = [key for key, other in self.by_options.items() if other.done() and other is not stream]
                for key in idle[:-IDLE_STREAMS]:
                    del self.by_options[key]
            return stream

    def take(self, bound: EnvelopeBound) -> list[CallStream]:
        """Take out the streams of calls that *bound* bounds."""
        with self.lock:
            found = [options for options in self.by_options if options.bound is bound]
            return [self.by_options.pop(options) for options in found]

    def drop(self, options: BatchOptions, stream: CallStream) -> None:
        """*stream* has failed."""
        with self.lock:
            if self.by_options.get(options) is stream:
                del self.by_options[options]


def call(options: BatchOptions, args: Sequence[Any], kwargs: Mapping[str, Any], future: Call | None = None) -> Call:
    """Call ``func(*args, **kwargs)`` on a worker, as *options* say; returns *future*, or a new one, at once.

    It is running once the call has left this process, and can be cancelled before.

    Raises:
        UnpicklableError, PayloadTooLargeError: an argument cannot travel.
    """
    frame = codec.dump_item((tuple(args), dict(kwargs)), settings().item_limit, "the arguments of the call")
    future, streams = future or Call(), part(_Streams)
    while True:
        stream = streams.get(options)
        if stream.call(frame, future):
            return future
        streams.drop(options, stream)


def cancel_bound(bound: EnvelopeBound) -> None:
    """End the calls that *bound* bounds, those that run too. Later ones are made as ever."""
    for stream in part(_Streams).take(bound):
        stream.cancel()
