"""Where the outcomes of one batch arrive, and wait until somebody reads them.

    subscriber ──► BatchSender.answered ──► OutcomeReceiver: Outcomes (of a batch or a map), CallStream (futures)

Outcomes arrive on the subscriber's thread. Every waiting reader is woken from there: a thread through a condition, a
coroutine through its own loop, so one batch may be awaited under any loop, or several.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from graft.tasks.envelope import Outcome
from graft.tasks.errors import ResultTimeout, TaskQueueError
from graft.tasks.ids import new_id
from graft.tasks.monitoring import otel

AT_ONCE: Final = 1000  # Values that a reader takes in one go.
_ABSENT: Final = object()


@dataclass(frozen=True)
class Progress:
    """How far a batch has come: counts of items, unless said otherwise.

    Attributes:
        total: items of the batch; None while the end of an iterator has not been reached.
        sent: items that have been sent.
        done: items that have an outcome, failed ones included.
        failed: items whose outcome is an error.
        envelopes: messages that have been sent.
        retries: runs of items that were repeated because the item raised.
        seconds: time since the batch was submitted, until its end.
    """

    total: int | None
    sent: int
    done: int
    failed: int
    envelopes: int
    retries: int
    seconds: float


class OutcomeReceiver(Protocol):
    """Takes in what a BatchSender sends and what comes back, on the publisher's and on the subscriber's thread."""

    id: str

    @property
    def unread(self) -> int:
        """Outcomes that a reader who takes them one by one has yet to take; 0 when sending need not wait for it."""

    def begin(self, position: int) -> bool:
        """Whether the item at *position*, which is about to be sent, is still wanted."""

    def note_sent(self, items: int, envelopes: int = 1) -> None: ...

    def note_total(self, total: int) -> None:
        """The end of the input is known."""

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        """Outcomes of one envelope, each item's once."""

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        """The same for items of which none has failed."""

    def fail(self, error: BaseException) -> None:
        """The batch as a whole cannot go on."""

    def done(self) -> bool:
        """Whether nobody waits for an outcome any more."""


class Outcomes:
    """The outcomes of one batch. *total* is None for a stream, whose outcomes are dropped once they have been read."""

    def __init__(self, total: int | None, *, is_reduced: bool = False) -> None:
        self.id = new_id()
        otel.note_caller(self.id)
        self.total = total
        self.is_reduced = is_reduced
        self.is_stream = total is None
        self.changed = threading.Condition()
        self.first_error: BaseException | None = None
        self.fatal: BaseException | None = None
        self.reduced: Outcome | None = None
        self.taken = 0
        self.on_read: Callable[[], None] | None = None
        self._wakers: set[Callable[[], None]] = set()
        # Apart, and bare: a stream of a million would spend half its time on making outcomes of them.
        self._values: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}
        self._arrived: deque[int] = deque()
        self._sent = self._done = self._failed = self._envelopes = self._retries = 0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._is_collected = False

    # ---- an OutcomeReceiver -----------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        return 0 if self._is_collected else self._sent - self.taken

    def begin(self, position: int) -> bool:
        """Every item of a batch is wanted."""
        return True

    def note_sent(self, items: int, envelopes: int = 1) -> None:
        with self.changed:
            self._sent += items
            self._envelopes += envelopes

    def note_total(self, total: int) -> None:
        with self.changed:
            self.total = total
            self._notify()

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        with self.changed:
            for outcome in outcomes:
                if outcome.error is None:
                    self._values[outcome.index] = outcome.value
                else:
                    self._errors[outcome.index] = outcome.error
                    self._failed += 1
                    if self.first_error is None:
                        self.first_error = outcome.error
                self._arrived.append(outcome.index)
            self._count(len(outcomes), retries)

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        with self.changed:
            self._values.update(zip(positions, values, strict=True))
            self._arrived.extend(positions)
            self._count(len(positions), retries)

    def note_counted(self, items: int, failed: int, retries: int) -> None:
        """Items of a reduced batch are done; their values stay on the workers."""
        with self.changed:
            self._failed += failed
            self._count(items, retries)

    def note_reduced(self, outcome: Outcome) -> None:
        """The outcome of a reduced batch; of several the first, which the others follow from."""
        with self.changed:
            if self.reduced is None:
                self.reduced = outcome
                self._notify()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            if not self.is_over:
                self.fatal = error if isinstance(error, Exception) else TaskQueueError(repr(error))
                self._notify()

    def _count(self, done: int, retries: int) -> None:
        self._done += done
        self._retries += retries
        self._notify()

    def _notify(self) -> None:
        if self.is_over and self._ended is None:
            self._ended = time.monotonic()
        self.changed.notify_all()
        for wake in self._wakers:
            wake()

    # ---- for readers ------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing more will arrive. With the lock held."""
        if self.fatal is not None:
            return True
        if self.is_reduced:
            return self.reduced is not None
        return self.total is not None and self._done >= self.total

    @property
    def has_arrived(self) -> bool:
        """Whether outcomes have arrived that :meth:`next_arrived` has not given out."""
        return bool(self._arrived)

    def has(self, index: int) -> bool:
        """Whether the outcome of item *index* is here."""
        return index in self._values or index in self._errors

    def done(self) -> bool:
        """Whether every item has its outcome, or the batch has failed as a whole."""
        with self.changed:
            return self.is_over

    def progress(self) -> Progress:
        """How far the batch has come, without a round trip."""
        with self.changed:
            seconds = (self._ended or time.monotonic()) - self._began
            return Progress(
                self.total, self._sent, self._done, self._failed, self._envelopes, self._retries, seconds
            )  # fmt: skip

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Return once *ready* is true, which is asked after each arrival, with the lock held. Blocks its thread.

        Raises:
            ResultTimeout: not after *timeout* seconds.
        """
        with self.changed:
            if not self.changed.wait_for(ready, timeout):
                raise ResultTimeout(
                    f"{self._done} of {self.total if self.total is not None else 'an unknown number of'} results had "
                    f"arrived after {timeout:g} s; the batch goes on: collect it later, or cancel() it"
                )

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """The same for a coroutine."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:
                pass  # The loop was closed while its coroutine waited: nobody is left to wake.

        with self.changed:
            self._wakers.add(wake)
        try:
            while True:
                woken.clear()
                with self.changed:
                    if ready():
                        return
                await woken.wait()
        finally:
            with self.changed:
                self._wakers.discard(wake)

    def collect_everything(self) -> None:
        """All values will be kept for one list, so nothing has to be held back for a slow reader."""
        with self.changed:
            self._is_collected = True
        if self.on_read:
            self.on_read()

    def values(self, *, keep: bool) -> list[Any]:
        """All values in the order of the items, once all have arrived; unless *keep*, they are forgotten."""
        with self.changed:
            take = self._values.__getitem__ if keep else self._values.pop
            return [take(index) for index in range(self.total or 0)]

    def values_from(self, index: int) -> list[Any]:
        """The values that have arrived from *index* on, or the error raised that has; nothing after the last item."""
        with self.changed:
            run: list[Any] = []
            take = self._values.pop if self.is_stream else self._values.get
            for position in range(index, index + AT_ONCE):
                value = take(position, _ABSENT)
                if value is _ABSENT:
                    break
                run.append(value)
            error = None if run else self._errors.get(index, self.fatal)
            if len(self._arrived) > 2 * len(self._values) + AT_ONCE:
                self._arrived = deque(filter(self.has, self._arrived))
        self._note_taken(len(run))
        if error is not None:
            raise error
        return run

    def next_arrived(self) -> Outcome | None:
        """The outcome that arrived first of those that were not given out; None when there is none.

        Raises:
            BrokerUnavailable: there is none, and none will arrive.
        """
        with self.changed:
            outcome = None
            while self._arrived and outcome is None:
                outcome = self.take(self._arrived.popleft(), keep=not self.is_stream)
            if outcome is None and self.fatal is not None:
                raise self.fatal
        self._note_taken(outcome is not None)
        return outcome

    def take(self, index: int, *, keep: bool) -> Outcome | None:
        """The outcome of item *index*, if it is here; unless *keep*, it is forgotten."""
        with self.changed:
            if index in self._values:
                return Outcome(index, self._values[index] if keep else self._values.pop(index))
            error = self._errors.get(index) if keep else self._errors.pop(index, None)
            return None if error is None else Outcome(index, error=error)

    def _note_taken(self, number: int) -> None:
        if number:
            self.taken += number
            if self.on_read:
                self.on_read()
