"""What a caller holds while its items run: outcomes in, values out, for threads and event loops alike.

Answers arrive on the subscriber's thread (subscriber.py). Every waiting caller is woken from there: a thread through a
condition, a coroutine through its own loop, so a batch may be awaited under any loop, or several.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from graft.tasks.envelope import Outcome
from graft.tasks.errors import ResultTimeout, TaskQueueError
from graft.tasks.monitoring import otel
from graft.tasks.worker_runtime import in_worker

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


class Batch:
    """The results of one ``submit``: collect them, iterate over them, or await them.

    - ``batch.collect()`` or ``await batch``: the list of all values, in the order of the items
    - ``for value in batch`` or ``async for value in batch``: the same values, each as soon as all before it are there
    - ``batch.as_completed()`` or ``batch.as_completed_async()``: an Outcome for each item, as they arrive

    If an item fails, its own error is raised, with the worker's traceback as ``__cause__``; the other items run on. A
    reduced batch has one value, the reducer's result: collect it or await it.

    A batch of an iterator is a stream: its outcomes are dropped when they have been read, so it can be read once. Stop
    iterating, and no more input is read. Never start, and everything still runs. If the calling process exits, items
    that were not sent yet are dropped; sent ones still run.

    A task must not wait for a batch: collecting, awaiting or iterating inside a task is a RuntimeError.

    Attributes:
        id: the batch's id, as ``celery -A graft batch list`` shows it; also the id of its Celery group.
        reduced: whether the batch has a reducer.
    """

    is_told = True  # To others, while it runs (progress.py).

    def __init__(self, batch_id: str, total: int | None, *, reduced: bool = False) -> None:
        self.id = batch_id
        otel.note_caller(batch_id)
        self.reduced = reduced
        self._total = total
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()
        # Apart, and bare: a stream of a million would spend half its time on making outcomes of them.
        self._results: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}
        self._order: deque[int] = deque()
        self._keeps = total is not None  # Outcomes of a stream are dropped once they have been read.
        self._first_error: BaseException | None = None
        self._fatal: BaseException | None = None
        self._answer: Outcome | None = None
        self._cancel: Callable[[], None] | None = None
        self._consumed: Callable[[], None] | None = None
        self._sent = self._done = self._failed = self._envelopes = self._retries = 0
        self._taken = 0
        self._began = time.monotonic()
        self._ended: float | None = None
        self._unbounded = False

    def __repr__(self) -> str:
        return f"<Batch {self.id}: {self._done} of {self._total if self._total is not None else '?'} done>"

    # ---- for callers ----------------------------------------------------------------------------------------------

    def collect(self, timeout: float | None = None) -> Any:
        """Wait for all items and return their values.

        Args:
            timeout: seconds to wait. Default: no limit.

        Returns:
            The list of values in the order of the items; of a reduced batch, the reducer's result.

        Raises:
            ResultTimeout: not all values had arrived after *timeout* seconds. The batch goes on; collect it later.
            BrokerUnavailable: the broker could not be reached.
            EnvelopeLostError: Redis lost a message of the batch more often than it is sent again.
            Exception: the first failing item's own error, as soon as it is known.
        """
        self._drain_freely()
        self._wait(lambda: self._is_settled, timeout)
        return self._values()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._collect_async().__await__()

    async def _collect_async(self) -> Any:
        self._drain_freely()
        await self._wait_async(lambda: self._is_settled)
        return self._values()

    def __iter__(self) -> Iterator[Any]:
        """Give the values in the order of the items; a failed item's error is raised in its place.

        Leaving the loop over a stream cancels the items that have not begun.
        """
        self._refuse_second_reader()
        index = 0
        try:
            while run := self._in_order(index, self._wait):
                index += len(run)
                yield from run
        finally:
            self._note_left()

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._refuse_second_reader()
        index = 0
        try:
            while True:
                await self._wait_async(partial(self._can_tell, index))
                run = self._in_order(index, None)
                if not run:
                    return
                index += len(run)
                for value in run:
                    yield value
        finally:
            self._note_left()

    def as_completed(self, timeout: float | None = None) -> Iterator[Outcome]:
        """Give an Outcome for each item, in the order in which they arrive; errors are in the outcomes, not raised.

        Args:
            timeout: seconds to wait for the next outcome. Default: no limit.

        Raises:
            ResultTimeout: no outcome arrived within *timeout* seconds.
            BrokerUnavailable: the broker could not be reached.
        """
        self._refuse_second_reader()
        try:
            while True:
                self._wait(lambda: bool(self._order) or self._is_over, timeout)
                outcome = self._next_arrived()
                if outcome is None:
                    return
                yield outcome
        finally:
            self._note_left()

    async def as_completed_async(self) -> AsyncIterator[Outcome]:
        """Give the same outcomes to a coroutine: ``async for outcome in batch.as_completed_async()``."""
        self._refuse_second_reader()
        try:
            while True:
                await self._wait_async(lambda: bool(self._order) or self._is_over)
                outcome = self._next_arrived()
                if outcome is None:
                    return
                yield outcome
        finally:
            self._note_left()

    def progress(self) -> Progress:
        """Return how far the batch has come. Asks this process alone, not Redis."""
        with self._changed:
            return Progress(
                self._total,
                self._sent,
                self._done,
                self._failed,
                self._envelopes,
                self._retries,
                (self._ended or time.monotonic()) - self._began,
            )

    def done(self) -> bool:
        """Return whether every item has its outcome, or the batch has failed as a whole."""
        with self._changed:
            return self._is_over

    def cancel(self) -> None:
        """Cancel the items that have not begun; they end in CancelledBatchError. Items that run are finished."""
        if self._cancel is not None and not self.done():
            self._cancel()

    # ---- waiting --------------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        if self._fatal is not None:
            return True
        if self.reduced:
            return self._answer is not None
        return self._total is not None and self._done >= self._total

    @property
    def _is_settled(self) -> bool:
        return self._is_over or (self._first_error is not None and not self.reduced)

    def _can_tell(self, index: int) -> bool:
        return self._is_kept(index) or self._is_over

    def _refuse_in_tasks(self) -> None:
        if in_worker() and not self.done():
            raise RuntimeError(
                "a task must not wait for a batch: with every worker waiting, none is left to run it; let reduce= be "
                "called when the batch is done, or submit from outside"
            )

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        self._refuse_in_tasks()
        with self._changed:
            if not self._changed.wait_for(ready, timeout):
                raise ResultTimeout(
                    f"{self._done} of {self._total if self._total is not None else 'an unknown number of'} results had "
                    f"arrived after {timeout:g} s; the batch goes on: collect it later, or cancel() it"
                )

    async def _wait_async(self, ready: Callable[[], bool]) -> None:
        self._refuse_in_tasks()
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:
                pass  # The loop was closed while its coroutine waited: nobody is left to wake.

        with self._changed:
            self._wakers.add(wake)
        try:
            while True:
                woken.clear()
                with self._changed:
                    if ready():
                        return
                await woken.wait()
        finally:
            with self._changed:
                self._wakers.discard(wake)

    def _drain_freely(self) -> None:
        """All values will be kept for one list, so nothing has to be held back for a slow reader."""
        with self._changed:
            self._unbounded = True
        if self._consumed:
            self._consumed()

    def _values(self) -> Any:
        with self._changed:
            if self._fatal is not None:
                raise self._fatal
            if self.reduced:
                assert self._answer is not None
                return self._answer.unwrap()
            if self._first_error is not None:
                raise self._first_error
            self._refuse_second_reader()
            return [self._results[index] for index in range(self._total or 0)]

    def _in_order(self, index: int, wait: Callable[[Callable[[], bool], None], None] | None) -> list[Any]:
        """The values that have arrived from *index* on, or the error raised that has; nothing after the last item."""
        if self.reduced:
            raise TypeError("a reduced batch has one value: collect it or await it")
        if wait:
            wait(lambda: self._can_tell(index), None)
        with self._changed:
            run = []
            take = self._results.get if self._keeps else self._results.pop
            for position in range(index, index + AT_ONCE):
                value = take(position, _ABSENT)
                if value is _ABSENT:
                    break
                run.append(value)
            error = None if run else self._errors.get(index, self._fatal)
            if len(self._order) > 2 * len(self._results) + AT_ONCE:
                self._order = deque(filter(self._is_kept, self._order))
        self._note_taken(len(run))
        if error is not None:
            raise error
        return run

    def _next_arrived(self) -> Outcome | None:
        with self._changed:
            outcome = None
            while self._order and outcome is None:
                outcome = self._take(self._order.popleft(), keep=self._keeps)
            if outcome is None and self._fatal is not None:
                raise self._fatal
        self._note_taken(outcome is not None)
        return outcome

    def _refuse_second_reader(self) -> None:
        if not self._keeps and self._taken:
            raise TaskQueueError(f"{self._taken} results of this stream have been read and dropped; it is read once")

    def _note_left(self) -> None:
        """A reader has gone: nobody else will read a stream to its end."""
        if not self._keeps:
            self.cancel()

    def _is_kept(self, index: int) -> bool:
        return index in self._results or index in self._errors

    def _take(self, index: int, *, keep: bool) -> Outcome | None:
        if index in self._results:
            return Outcome(index, self._results[index] if keep else self._results.pop(index))
        error = self._errors.get(index) if keep else self._errors.pop(index, None)
        return None if error is None else Outcome(index, error=error)

    def _note_taken(self, number: int) -> None:
        if number:
            self._taken += number
            if self._consumed:
                self._consumed()

    # ---- for the road ---------------------------------------------------------------------------------------------

    @property
    def unread(self) -> int:
        """Outcomes due to a reader that takes them one by one: sent and not yet taken."""
        return 0 if self._unbounded else self._sent - self._taken

    def attach(self, cancel: Callable[[], None], consumed: Callable[[], None]) -> None:
        """Tell the batch how to stop its feeder, and whom to tell that a reader has taken something."""
        self._cancel, self._consumed = cancel, consumed

    def begin(self, position: int) -> bool:
        """Whether the item at *position*, which is about to leave, is still wanted."""
        return True

    def note_sent(self, items: int, envelopes: int = 1) -> None:
        with self._changed:
            self._sent += items
            self._envelopes += envelopes

    def note_total(self, total: int) -> None:
        """The end of the input is known."""
        with self._changed:
            self._total = total
            self._notify()

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        """Outcomes of one envelope; a second answer to the same item changes nothing."""
        with self._changed:
            for outcome in outcomes:
                if outcome.error is None:
                    self._results[outcome.index] = outcome.value
                else:
                    self._errors[outcome.index] = outcome.error
                    self._failed += 1
                    if self._first_error is None:
                        self._first_error = outcome.error
                self._order.append(outcome.index)
            self._done += len(outcomes)
            self._retries += retries
            self._notify()

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        """The same for items of which none has failed."""
        with self._changed:
            self._results.update(zip(positions, values, strict=True))
            self._order.extend(positions)
            self._done += len(positions)
            self._retries += retries
            self._notify()

    def note_counted(self, items: int, failed: int, retries: int) -> None:
        """Items of a reduced batch are done; their values stay on the workers."""
        with self._changed:
            self._done += items
            self._failed += failed
            self._retries += retries
            self._notify()

    def note_answer(self, outcome: Outcome) -> None:
        """The answer to a reduced batch; of several the first, which the others follow from."""
        with self._changed:
            if self._answer is None:
                self._answer = outcome
                self._notify()

    def fail(self, error: BaseException) -> None:
        """The batch as a whole cannot go on."""
        with self._changed:
            if not self._is_over:
                self._fatal = error if isinstance(error, Exception) else TaskQueueError(repr(error))
                self._notify()

    def _notify(self) -> None:
        if self._is_over and self._ended is None:
            self._ended = time.monotonic()
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
