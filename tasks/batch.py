"""The handle of a caller on the items that it has submitted: for threads and event loops alike."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol

from graft.tasks.envelope import Outcome
from graft.tasks.errors import TaskQueueError
from graft.tasks.results.outcomes import Outcomes, Progress
from graft.tasks.results.progress_bar import progress_bar
from graft.tasks.worker_runtime import in_worker


def refuse_to_wait_in_a_task(outcomes: Outcomes) -> None:
    """Raises RuntimeError inside a task, unless *outcomes* are complete."""
    if in_worker() and not outcomes.done():
        raise RuntimeError(
            "a task must not wait for a batch: with every worker waiting, none is left to run it; let reduce= be "
            "called when the batch is done, or submit from outside"
        )


def is_in_loop() -> bool:
    """Whether this thread runs an event loop now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Cancel(Protocol):
    """Cancels what has not begun, and what runs if *running*."""

    def __call__(self, *, running: bool = False) -> None: ...


class Batch:
    """The results of one ``submit``: collect them, iterate over them, or await them.

    - ``batch.collect()`` or ``await batch``: the list of all values, in the order of the items
    - ``for value in batch`` or ``async for value in batch``: the same values, each as soon as all before it are there
    - ``batch.as_completed()`` or ``batch.as_completed_async()``: an Outcome for each item, as they arrive

    If an item fails, its own error is raised, with the worker's traceback as ``__cause__``; the other items run on. A
    reduced batch has one value, the reducer's result: collect it or await it.

    A batch of an iterator is a stream: its outcomes are dropped when they have been read, so it can be read once. Stop
    iterating, and no more input is read. Never start, and everything still runs. If the calling process exits, items
    that were not sent yet are dropped; sent ones still run. A ``DurableBatch`` goes on.

    Where a coroutine that awaits the batch, or iterates over it, is cancelled, the batch is cancelled; so is it when
    ``asyncio.timeout`` ends. ``await asyncio.shield(batch)`` lets it go on.

    A task must not wait for a batch: collecting, awaiting or iterating inside a task is a RuntimeError. So is, on the
    thread of a running event loop, which would stand still, what is not awaited: collecting and plain iteration.

    A batch that a coroutine has submitted and nobody has looked at is a RuntimeWarning when it is dropped: an ``await``
    was forgotten. :meth:`detach` says that nobody will look.

    Attributes:
        id: the batch's id, as ``celery -A graft batch list`` shows it; also the id of its Celery group.
        reduced: whether the batch has a reducer.
    """

    def __init__(self, outcomes: Outcomes, cancel: Cancel | None = None) -> None:
        self.id = outcomes.id
        self.reduced = outcomes.is_reduced
        self._outcomes = outcomes
        self._cancel = cancel
        self._is_forgotten = is_in_loop()  # Until somebody looks at it.

    def __del__(self) -> None:
        if getattr(self, "_is_forgotten", False) and not sys.is_finalizing():
            warnings.warn(
                f"batch {self.id} was submitted in a coroutine and never awaited: nobody sees its results and errors. "
                "Write `await batch`, or batch.detach() where nobody needs them",
                RuntimeWarning, stacklevel=2, source=self,
            )  # fmt: skip

    def __repr__(self) -> str:
        now = self.progress()
        return f"<Batch {self.id}: {now.done} of {now.total if now.total is not None else '?'} done>"

    def collect(self, timeout: float | None = None, *, progress: bool | None = None) -> Any:
        """Wait for all items and return their values.

        Args:
            timeout: seconds to wait. Default: no limit.
            progress: show a bar meanwhile, if stderr is a terminal. Default: as ``GRAFT_PROGRESS`` says.

        Returns:
            The list of values in the order of the items; of a reduced batch, the reducer's result.

        Raises:
            ResultTimeout: not all values had arrived after *timeout* seconds. The batch goes on; collect it later.
            BrokerUnavailable: the broker could not be reached.
            EnvelopeLostError: Redis lost a message of the batch more often than it is sent again.
            Exception: the first failing item's own error, as soon as it is known.
        """
        self._is_forgotten = False
        self._refuse_to_wait("await batch")
        self._outcomes.collect_everything()
        with progress_bar(self._outcomes, progress):
            self._outcomes.wait(lambda: self._is_settled, timeout)
        return self._values()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._collect_async().__await__()

    async def _collect_async(self) -> Any:
        self._is_forgotten = False
        self._outcomes.collect_everything()
        with progress_bar(self._outcomes):
            await self._wait_async(lambda: self._is_settled)
        return self._values()

    def __iter__(self) -> Iterator[Any]:
        """Give the values in the order of the items; a failed item raises its error when its turn comes.

        Leaving the loop over a stream cancels the items that have not begun.
        """
        self._refuse_second_reader()
        self._refuse_reduced()
        index = 0
        try:
            while True:
                self._wait(partial(self._has_next, index), None, "async for value in batch")
                run = self._outcomes.values_from(index)
                if not run:
                    return
                index += len(run)
                yield from run
        finally:
            self._note_left()

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._refuse_second_reader()
        self._refuse_reduced()
        index = 0
        try:
            while True:
                await self._wait_async(partial(self._has_next, index))
                run = self._outcomes.values_from(index)
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
                self._wait(self._has_more, timeout, "async for outcome in batch.as_completed_async()")
                outcome = self._outcomes.next_arrived()
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
                await self._wait_async(self._has_more)
                outcome = self._outcomes.next_arrived()
                if outcome is None:
                    return
                yield outcome
        finally:
            self._note_left()

    def progress(self) -> Progress:
        """Return how far the batch has come. Asks this process alone, not Redis."""
        return self._outcomes.progress()

    def done(self) -> bool:
        """Return whether every item has its outcome, or the batch has failed as a whole."""
        self._is_forgotten = False
        return self._outcomes.done()

    def cancel(self, *, running: bool = False) -> None:
        """Cancel the items that have not begun; they end in CancelledBatchError. Returns at once.

        Half a second later no worker begins another item of the batch. Items that run are finished.

        Args:
            running: end the items that run, too: they end in CancelledBatchError, and none is run again. A coroutine is
                cancelled. A plain function is interrupted, as by a soft time limit, when the call into C that it is in
                returns; on the io lane it runs on a thread, and is finished.
        """
        if self._cancel is not None and not self.done():
            self._cancel(running=running)

    def detach(self) -> None:
        """Say that nobody will collect the batch, so that no warning is given.

        It goes on while this process lives; at its end what has been sent runs all the same, and the rest is dropped.
        For a batch that outlives its caller see ``submit(durable=True)``.
        """
        self._is_forgotten = False

    # ---- waiting, with the lock of the outcomes held where a question is asked --------------------------------------

    @property
    def _is_settled(self) -> bool:
        found = self._outcomes
        return found.is_over or (found.first_error is not None and not found.is_reduced)

    def _has_next(self, index: int) -> bool:
        return self._outcomes.has(index) or self._outcomes.is_over

    def _has_more(self) -> bool:
        return self._outcomes.has_arrived or self._outcomes.is_over

    def _wait(self, ready: Callable[[], bool], timeout: float | None, instead: str) -> None:
        self._refuse_to_wait(instead)
        self._outcomes.wait(ready, timeout)

    def _refuse_to_wait(self, instead: str) -> None:
        refuse_to_wait_in_a_task(self._outcomes)
        if is_in_loop() and not self._outcomes.done():
            raise RuntimeError(f"this would hold up the event loop that runs on this thread; write: {instead}")

    async def _wait_async(self, ready: Callable[[], bool]) -> None:
        refuse_to_wait_in_a_task(self._outcomes)
        try:
            await self._outcomes.wait_async(ready)
        except asyncio.CancelledError:  # Whoever wanted it does not want it any more.
            self.cancel()
            raise

    def _values(self) -> Any:
        found = self._outcomes
        with found.changed:
            if found.fatal is not None:
                raise found.fatal
            if found.is_reduced:
                assert found.reduced is not None
                return found.reduced.unwrap()
            if found.first_error is not None:
                raise found.first_error
            self._refuse_second_reader()
            return found.values(keep=True)

    def _refuse_reduced(self) -> None:
        if self._outcomes.is_reduced:
            raise TypeError("a reduced batch has one value: collect it or await it")

    def _refuse_second_reader(self) -> None:
        self._is_forgotten = False
        found = self._outcomes
        if found.is_stream and found.taken:
            raise TaskQueueError(f"{found.taken} results of this stream have been read and dropped; it is read once")

    def _note_left(self) -> None:
        """A reader has gone: nobody else will read a stream to its end."""
        if self._outcomes.is_stream:
            self.cancel()
