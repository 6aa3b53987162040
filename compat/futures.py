"""What a caller of calls.py holds: the future of one call, the outcomes of a map, the values of a stream of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from graft.tasks.batches import Batch
from graft.tasks.envelope import Outcome
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.ids import new_id


class BrokenClusterError(BrokenExecutor, BrokerUnavailable):
    """The broker did not answer, so the call could not be made or its result not be had.

    Later calls try again: an outage fails the calls that it meets, not the executor.
    """


def executor_error(error: BaseException) -> BaseException:
    """*error* as an executor reports it: a broker out of reach is a BrokenExecutor, anything else stays."""
    if isinstance(error, BrokerUnavailable) and not isinstance(error, BrokenExecutor):
        broken = BrokenClusterError(str(error))
        broken.__cause__ = error
        return broken
    return error


class CallFuture(Future[Any]):
    """One call. Its carrier, once it has one, is the future of the line or the thread that makes the call."""

    def __init__(self) -> None:
        super().__init__()
        self._carrier: Future[Any] | None = None

    def follow(self, carrier: Future[Any]) -> None:
        """Become what *carrier* becomes."""
        self._carrier = carrier
        carrier.add_done_callback(self._settle)

    def running(self) -> bool:
        """Whether the call has left this process, or runs in it, and cannot be cancelled any more."""
        carrier = self._carrier
        return super().running() or (carrier is not None and carrier.running() and not self.done())

    def cancel(self) -> bool:
        carrier = self._carrier
        if carrier is not None and not super().running():
            return carrier.cancel()
        is_cancelled = super().cancel()
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()  # Whoever waits for several futures is told here.
        return is_cancelled

    def fail(self, error: BaseException) -> None:
        """End in *error*, unless it has ended."""
        with suppress(InvalidStateError):
            self.set_exception(error)

    def begin(self) -> bool:
        """Whether the call, which is about to be made, is still wanted."""
        with self._condition:
            return not self.done() and self.set_running_or_notify_cancel()

    def _settle(self, carrier: Future[Any]) -> None:
        # Whoever waits for this future holds no carrier, and a carrier's value must not be kept twice.
        with suppress(InvalidStateError):
            if not carrier.cancelled():
                error = carrier.exception()
                if error is not None:
                    self.set_exception(executor_error(error))
                else:
                    self.set_result(carrier.result())
            elif super().running():
                self.set_exception(CancelledError())
            else:
                self._carrier = None
                self.cancel()
        self._carrier = None


class MapCall(Batch):
    """A map over items whose number is known; ``ended`` is done once every item has its outcome.

    Outcomes are dropped as they are taken. *is_here*: the items run in this process, so a task may wait for them.
    """

    def __init__(self, total: int, *, is_here: bool) -> None:
        super().__init__(new_id(), total)
        self.total = total
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()
        self._is_here = is_here
        self._is_told = False
        self._tell()

    def take(self, position: int, timeout: float | None = None) -> Outcome:
        """The outcome of the item at *position*, which is then forgotten.

        Raises:
            ResultTimeout: it had not arrived after *timeout* seconds.
            BrokerUnavailable: it will not arrive.
        """
        self._wait(lambda: self._can_tell(position), timeout)
        with self._changed:
            outcome = self._arrived.pop(position, None)
            if outcome is None:
                raise self._fatal or LookupError(f"the outcome of item {position} has been taken")
            return outcome

    def values(self) -> list[Any]:
        """Wait for every item; all values in order, which are then forgotten, or else the error that came first."""
        self._wait(lambda: self._is_over, None)
        with self._changed:
            error = self._fatal or self._first_error
            if error is not None:
                raise error
            return [self._arrived.pop(position).value for position in range(self.total)]

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        super().note_outcomes(outcomes, retries)
        self._tell()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            if self._is_told or not self._is_over:
                return
            self._is_told = True
        self.ended.set_result(None)

    def _refuse_in_tasks(self) -> None:
        if not self._is_here:
            super()._refuse_in_tasks()


class Stream(Iterator[Any]):
    """Values of calls that are made no more than *window* ahead of their reader, one call for each item.

    The items are read in the reader's thread, so they may be endless. An error of theirs is raised after the values of
    all items before it; a call's own error is raised in its place, and the next value can be had after it. A stream
    that is dropped cancels what has not begun.
    """

    def __init__(
        self,
        call: Callable[[Any], Future[Any]],
        items: Iterable[Any],
        *,
        window: int,
        ordered: bool = True,
        late: type[Exception] = TimeoutError,
    ) -> None:
        self._call = call
        self._items: Iterator[Any] | None = iter(items)
        self._window = window
        self._ordered = ordered
        self._late = late
        self._calls: dict[Future[Any], None] = {}
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
        self._error: BaseException | None = None
        self._reading = threading.Lock()
        self._fill()

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next value.

        Raises:
            TimeoutError: it was not there after *timeout* seconds; it can still be had later. (*late*, if given.)
            StopIteration: there are no more.
        """
        with self._reading:
            self._fill()
            if not self._calls:
                error, self._error = self._error, None
                raise error or StopIteration
            future = self._first(timeout)
            del self._calls[future]
        return future.result()

    def close(self) -> None:
        """Read no further, and cancel what has not begun."""
        self._items = self._error = None
        for future in list(self._calls):
            future.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_calls"):  # The items may have been no iterable.
            self.close()

    def _fill(self) -> None:
        while self._items is not None and len(self._calls) < self._window:
            try:
                item = next(self._items)
            except StopIteration:
                self._items = None
            except Exception as error:  # The items are the caller's code; what it has given so far comes first.
                self._items, self._error = None, error
            else:
                future = self._call(item)
                self._calls[future] = None
                if not self._ordered:
                    future.add_done_callback(self._done.put)

    def _first(self, timeout: float | None) -> Future[Any]:
        try:
            if not self._ordered:
                return self._done.get(timeout=None if timeout is None else max(timeout, 0))
            future = next(iter(self._calls))
            with suppress(CancelledError):
                future.exception(timeout)
            return future
        except (Empty, TimeoutError):
            raise self._late(f"no value had come after {timeout:g} s") from None
