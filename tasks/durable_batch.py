"""The handle of a durable batch, for any process: reads what workers have kept in Redis.

Nothing is announced to it, so it asks: twice a second while it waits. A reader that ends takes nothing along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import redis

from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.batch import Batch, is_in_loop
from graft.tasks.durable import record as records
from graft.tasks.durable.outcomes import AsArrived, InOrder, failed_positions
from graft.tasks.durable.record import BatchRecord, State
from graft.tasks.envelope import Outcome
from graft.tasks.errors import ResultTimeout, UnknownBatchError
from graft.tasks.results.outcomes import Progress
from graft.tasks.results.progress_bar import progress_bar
from graft.tasks.results.subscriber import unavailable
from graft.tasks.worker_runtime import in_worker

T = TypeVar("T")

SOONEST: Final = 0.02  # Seconds between two questions at first,
LATEST: Final = 0.5  # and while nothing happens.


def batch(id_or_name: str) -> DurableBatch:
    """Return the durable batch with this id or name, whichever process has submitted it.

    Args:
        id_or_name: ``batch.id``, or the ``name=`` that it was submitted with. A name goes before an id.

    Raises:
        UnknownBatchError: there is none, or it has expired.
        BrokerUnavailable: Redis does not answer.
    """
    return DurableBatch(_asked(lambda: records.read(records.id_of(id_or_name))))


@dataclass(frozen=True)
class BatchSummary:
    """What ``then=`` of a durable batch is called with.

    Attributes:
        id: the batch's id, for ``graft.batch(summary.id)``.
        name: its name; empty without one.
        succeeded: whether every item has a value.
        total: its items.
        failed: items whose outcome is an error.
        seconds: from when it was submitted until its end.
    """

    id: str
    name: str
    succeeded: bool
    total: int
    failed: int
    seconds: float


class DurableBatch(Batch):
    """A batch that outlives its caller: ``graft.submit(…, durable=True)``, ``name=``, or ``graft.batch``.

    Reads like any ``Batch``: collect it, iterate over it, or await it. Values come from Redis in pages, so a loop
    holds about a megabyte of them at a time. Any number of processes may read, each from the beginning; ending a loop,
    or cancelling an await, ends nothing but the reading.

    A batch is kept for ``GRAFT_BATCH_TTL`` (a week) after its end. Every method asks Redis, and raises
    UnknownBatchError once the batch is gone, and BrokerUnavailable while Redis does not answer; who waits or iterates
    bears with an outage of ``GRAFT_OUTAGE_GRACE``.

    Attributes:
        id: the batch's id.
        name: the name that it was submitted with; empty without one.
    """

    def __init__(self, record: BatchRecord) -> None:
        self.id = record.id
        self.name = record.name
        self.total = record.total
        self.reduced = False
        self._record = record
        self._is_forgotten = False

    def __repr__(self) -> str:
        now = self._record
        return f"<DurableBatch {self.name or self.id}: {now.done} of {now.total} done>"

    # ---- how far it is ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """``later`` (not due), ``running``, ``paused``, ``cancelled`` (not ended yet), ``succeeded``, ``failed``."""
        return self._read().state

    def progress(self) -> Progress:
        """Return how far the batch has come."""
        return _progress(self._read())

    def done(self) -> bool:
        """Return whether every item has its outcome, or the batch cannot run at all."""
        return bool(self._read().ended)

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> None:
        """Wait until every item has its outcome.

        Args:
            timeout: seconds to wait. Default: no limit.
            progress: show a bar meanwhile, if stderr is a terminal. Default: as ``GRAFT_PROGRESS`` says.

        Raises:
            ResultTimeout: not after *timeout* seconds. The batch goes on.
        """
        self._refuse_to_wait("await batch")
        with progress_bar(_Shown(self), progress):
            self._poll(self._ended, timeout)

    # ---- values -----------------------------------------------------------------------------------------------------

    def collect(self, timeout: float | None = None, *, progress: bool | None = None) -> list[Any]:
        """Wait for all items and return their values, in the order of the items.

        Args:
            timeout: seconds to wait. Default: no limit.
            progress: show a bar meanwhile, if stderr is a terminal. Default: as ``GRAFT_PROGRESS`` says.

        Raises:
            ResultTimeout: not all values were there after *timeout* seconds. The batch goes on.
            Exception: a failed item's own error, as soon as one is known.
        """
        self._refuse_to_wait("await batch")
        with progress_bar(_Shown(self), progress):
            self._poll(self._settled, timeout)
        return _asked(self._values)

    async def _collect_async(self) -> list[Any]:
        self._refuse_in_a_task()
        await self._poll_async(self._settled)
        return await asyncio.to_thread(_asked, self._values)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._collect_async().__await__()

    def __iter__(self) -> Iterator[Any]:
        """Give the values in the order of the items; a failed item raises its error when its turn comes."""
        for taken in self.pages():
            for outcome in taken:
                yield outcome.unwrap()

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._refuse_in_a_task()
        take = self._in_order()
        while taken := await self._poll_async(take):
            for outcome in taken:
                yield outcome.unwrap()

    def pages(self, *, wait: bool = True) -> Iterator[list[Outcome]]:
        """Give lists of outcomes in the order of the items, about a megabyte each; errors are in them, not raised.

        Args:
            wait: for outcomes that are not there yet. Else the last list ends before the first of these.
        """
        if wait:
            self._refuse_to_wait("async for value in batch")
        take = self._in_order()
        while taken := self._poll(take, None) if wait else _asked(take):
            yield taken

    def as_completed(self, timeout: float | None = None) -> Iterator[Outcome]:
        """Give an Outcome for each item, in the order in which they arrived; errors are in the outcomes, not raised.

        Args:
            timeout: seconds to wait for the next outcome. Default: no limit.

        Raises:
            ResultTimeout: no outcome arrived within *timeout* seconds.
        """
        self._refuse_to_wait("async for outcome in batch.as_completed_async()")
        take = self._as_arrived()
        while taken := self._poll(take, timeout):
            yield from taken

    async def as_completed_async(self) -> AsyncIterator[Outcome]:
        """Give the same outcomes to a coroutine: ``async for outcome in batch.as_completed_async()``."""
        self._refuse_in_a_task()
        take = self._as_arrived()
        while taken := await self._poll_async(take):
            for outcome in taken:
                yield outcome

    def errors(self) -> Iterator[Outcome]:
        """Give an Outcome for each item that has failed by now, in the order of the items. Does not wait."""
        read: dict[int, Outcome] = {}
        generation = self._read().generation
        for position in _asked(lambda: failed_positions(self._record.keys, shared())):
            if position not in read:
                cursor = InOrder(self._record.keys, shared(), position)
                read = {one.index: one for one in _asked(partial(cursor.take, generation))}
            if position in read and read[position].error is not None:
                yield read[position]

    # ---- changing its course ----------------------------------------------------------------------------------------

    def cancel(self, *, running: bool = False) -> None:
        """Cancel the items that have not begun; they end in CancelledBatchError.

        Workers begin no other item half a second later. The feeder, one of the workers, gives what was not sent its
        outcome: where no worker lives, that happens when one does again.

        Args:
            running: end the items that run, too, as for any batch.
        """
        record = self._read()
        if not record.ended:
            _asked(lambda: records.cancel(record, running=running))

    def pause(self) -> None:
        """Send nothing more until it is resumed; what was sent is finished."""
        record = self._read()
        if not record.ended:
            _asked(lambda: records.pause(record))

    def resume(self, *, failed: bool = False) -> int:
        """End a pause; with *failed*, run the items that have failed once more, now that their cause is mended.

        A worker imports a function once: start workers anew after its code was changed.

        Returns:
            How many items run again; 0 without *failed*.

        Raises:
            TaskQueueError: with *failed*, the batch has not ended.
        """
        record = self._read()
        if failed:
            return _asked(lambda: records.rerun(record))
        _asked(lambda: records.go_on(record))
        return 0

    def forget(self) -> None:
        """Remove the batch and its results from Redis; what of it has not begun never does."""
        record = self._read()
        _asked(lambda: records.forget(record))

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _read(self) -> BatchRecord:
        return _asked(self._reread)

    def _reread(self) -> BatchRecord:
        """The record as it is now; an outage is raised as redis-py does."""
        self._record = records.read(self.id)
        return self._record

    def _ended(self) -> bool | None:
        return True if self._reread().ended else None

    def _settled(self) -> bool | None:
        record = self._reread()
        return True if record.ended or record.failed else None

    def _values(self) -> list[Any]:
        record = self._reread()
        _raise_fatal(record)
        if record.failed:
            for outcome in self.errors():
                outcome.unwrap()
        values: list[Any] = []
        cursor = InOrder(record.keys, shared())
        while len(values) < record.total:
            taken = cursor.take(record.generation)
            if not taken:
                raise _gone(record, cursor.position)
            values += (outcome.unwrap() for outcome in taken)
        return values

    def _in_order(self) -> Callable[[], list[Outcome] | None]:
        """Gives the next outcomes each time it is called, None where they are not there yet, and [] at the end."""
        cursor = InOrder(self._record.keys, shared())

        def take() -> list[Outcome] | None:
            record = self._reread()  # First: what had ended by then is there.
            _raise_fatal(record)
            taken = cursor.take(record.generation)
            if taken or cursor.position >= record.total:
                return taken
            if record.ended:
                raise _gone(record, cursor.position)
            return None

        return take

    def _as_arrived(self) -> Callable[[], list[Outcome] | None]:
        cursor = AsArrived(self._record.keys, shared())

        def take() -> list[Outcome] | None:
            record = self._reread()
            _raise_fatal(record)
            taken = cursor.take(record.generation)
            return taken if taken or record.ended else None

        return take

    def _poll(self, ask: Callable[[], T | None], timeout: float | None) -> T:
        """The answer of *ask*, once it is not None."""
        poll = _Poll(self, timeout)
        while (answer := poll.ask(ask)) is None:
            time.sleep(poll.pause())
        return answer

    async def _poll_async(self, ask: Callable[[], T | None]) -> T:
        poll = _Poll(self, None)

        def once() -> T | None:
            return poll.ask(ask)

        while (answer := await asyncio.to_thread(once)) is None:  # noqa: ASYNC110  # Nothing is announced to it.
            await asyncio.sleep(poll.pause())
        return answer

    def _refuse_in_a_task(self) -> None:
        if in_worker() and not self.done():
            raise RuntimeError(
                "a task must not wait for a batch: with every worker waiting, none is left to run it; read it from "
                "outside, or when batch.done()"
            )

    def _refuse_to_wait(self, instead: str) -> None:
        self._refuse_in_a_task()
        if is_in_loop() and not self.done():
            raise RuntimeError(f"this would hold up the event loop that runs on this thread; write: {instead}")


class _Poll:
    """Asks again and again: less often while nothing happens, and in spite of an outage that is not too long."""

    def __init__(self, batch: DurableBatch, timeout: float | None) -> None:
        self._batch, self._timeout = batch, timeout
        self._began = time.monotonic()
        self._wait = SOONEST
        self._away_since: float | None = None

    def ask(self, ask: Callable[[], T | None]) -> T | None:
        now = time.monotonic()
        try:
            answer = ask()
            self._away_since = None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._away_since = self._away_since or now
            if now - self._away_since > settings().outage_grace:
                raise unavailable(error, was_connected=True) from error
            answer = None
        if answer is None and self._timeout is not None and now - self._began >= self._timeout:
            far = self._batch._record
            raise ResultTimeout(
                f"{far.done} of {far.total} results were there after {self._timeout:g} s; the batch goes on: "
                f"graft.batch({self._batch.name or self._batch.id!r}) reads it later"
            )
        return answer

    def pause(self) -> float:
        """Seconds until the next question."""
        self._wait = min(1.5 * self._wait, LATEST)
        left = self._timeout if self._timeout is None else self._began + self._timeout - time.monotonic()
        return self._wait if left is None else max(0.0, min(self._wait, left))


class _Shown:
    """What the bar of a waiting caller shows: the record as that caller has read it last."""

    def __init__(self, batch: DurableBatch) -> None:
        self._batch = batch
        self.id, self.total = batch.name or batch.id, batch.total

    def done(self) -> bool:
        return bool(self._batch._record.ended)

    def progress(self) -> Progress:
        return _progress(self._batch._record)


def _asked(ask: Callable[[], T]) -> T:
    """What *ask* comes to.

    Raises:
        BrokerUnavailable: Redis does not answer.
    """
    try:
        return ask()
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise unavailable(error) from error


def _progress(record: BatchRecord) -> Progress:
    sent = record.done + record.sent
    return Progress(record.total, sent, record.done, record.failed, record.envelopes, record.retries, record.seconds)


def _raise_fatal(record: BatchRecord) -> None:
    if record.fatal:
        raise codec.load_error(codec.unseal(f"fatal:{record.id}", record.fatal))


def _gone(record: BatchRecord, position: int) -> UnknownBatchError:
    return UnknownBatchError(
        f"the outcome of item {position} of batch {record.name or record.id} is gone from Redis: it has lost data, or "
        "evicts keys (maxmemory-policy must be noeviction)"
    )
