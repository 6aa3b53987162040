"""The asynchronous dialect of WorkerPool: spawn, CPU work, batches, chunks, shutdown, and the pool in figures.

Everything here takes its turn in the same queue, under the same bounds, as the blocking dialect.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from graft.compat.worker_pool.errors import JoinError, ParallelError, PoolClosedError, TaskFailed
from graft.compat.worker_pool.local_threads import Local
from graft.compat.worker_pool.placement import Work
from graft.compat.worker_pool.pool_client import Answer, Engine, poll, wait_until_async
from graft.tasks.callables.importable import import_name
from graft.tasks.errors import BrokerUnavailable, EnvelopeError, PoisonedError
from graft.tasks.pools.state import Entry
from graft.tasks.pools.worker import JobOutcome

if TYPE_CHECKING:
    from graft.compat.worker_pool.pool import WorkerPool


class Parallel:
    """The methods; the pool itself is made in pool.py."""

    _engine: Engine
    _num_workers: int
    _queue_size: int
    _calls: int
    _call_seconds: float
    _item_seconds: float
    _batch_seconds: float

    @classmethod
    def new(cls: type[WorkerPool], worker_count: int, queue_capacity: int) -> WorkerPool:  # type: ignore[misc]
        """A pool that is started; it meets the broker at its first call.

        Raises:
            ValueError: *worker_count* or *queue_capacity* is below 1.
        """
        if queue_capacity < 1:
            raise ValueError(f"queue_capacity={queue_capacity} must be at least 1")
        return cls(worker_count, queue_capacity)

    def worker_count(self) -> int:
        """The number of workers, as given."""
        return self._num_workers

    async def spawn(self, task: Callable[[], Any] | Coroutine[Any, Any, Any]) -> None:
        """Have *task* run, and forget it; returns when it is accepted, waiting while the queue is full.

        An error of *task* is logged and counted. A coroutine object runs on the caller's own loop.

        Raises:
            PoolClosedError: a shutdown has begun.
        """
        if inspect.iscoroutine(task):
            await self._spawn_coroutine(task)
            return
        if not callable(task):
            raise TypeError(f"{task!r} is neither callable nor a coroutine")
        await self._send("spawn", Work(None, task, [((), {})], unpack=True), "nobody")

    async def spawn_cpu_work(self, work: Callable[[], Any]) -> Any:
        """``work()``, called once on a worker; its result. Cancelled before it begins, it does not run.

        Raises:
            TaskFailed: it raised; its error is the cause.
            TaskCancelled: the pool went down first.
            JoinError: its processes died, or could not be reached.
            PoolClosedError: a shutdown has begun.
        """
        if not callable(work):
            raise TypeError(f"{work!r} is not callable")
        (value,) = await self._gather("spawn_cpu_work", [Work(None, work, [((), {})], unpack=True)])
        return value

    async def spawn_parallel_batch(self, items: Iterable[Any], process_fn: Callable[[Any], Any]) -> list[Any]:
        """``[process_fn(item) for item in items]`` over all workers; the first failing item ends it with its error.

        Items travel in chunks that shrink towards the end, so that the workers finish together.
        """
        if not callable(process_fn):
            raise TypeError(f"{process_fn!r} is not callable")
        items = list(items)
        return await self._map("spawn_parallel_batch", items, shrinking(len(items), self._num_workers), process_fn)

    async def spawn_chunked_parallel(
        self, items: Iterable[Any], chunk_size: int, process_fn: Callable[[Any], Any]
    ) -> list[Any]:
        """The same, with *chunk_size* consecutive items in each unit of work; the last may be shorter.

        Raises:
            ValueError: *chunk_size* is below 1.
        """
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1")
        if not callable(process_fn):
            raise TypeError(f"{process_fn!r} is not callable")
        items = list(items)
        sizes = [min(chunk_size, len(items) - start) for start in range(0, len(items), chunk_size)]
        return await self._map("spawn_chunked_parallel", items, sizes, process_fn)

    async def shutdown(self) -> None:
        """Refuse new work, and finish everything that was accepted; a second call returns quietly."""
        engine = self._engine
        if engine.is_down():
            return
        await asyncio.to_thread(engine.close)
        await wait_until_async(engine.is_drained)
        await asyncio.to_thread(engine.finish)

    def statistics(self) -> dict[str, Any]:
        """The pool in figures: counts and busy time of the whole cluster, dispatch and batches of this process.

        ``utilization`` is busy time / (workers x time since the start), ``batch_efficiency`` the time of the items of
        all batches / (workers x the time of the batches), ``average_dispatch_seconds`` the time inside a submitting
        call that found room. Blocks for a round trip.
        """
        standing = self._engine.standing()
        seconds, workers = standing.seconds, self._num_workers
        return {
            "worker_count": workers,
            "queue_capacity": self._queue_size,
            "submitted": standing.submitted + self._unwritten(),
            "completed": standing.completed,
            "failed": standing.failed,
            "abandoned": standing.abandoned,
            "running": standing.running,
            "queued": standing.waiting + self._unwritten(),
            "utilization": standing.busy / (workers * seconds) if seconds else 0.0,
            "average_dispatch_seconds": self._call_seconds / self._calls if self._calls else 0.0,
            "batch_efficiency": self._item_seconds / (workers * self._batch_seconds) if self._batch_seconds else 0.0,
            "throughput": standing.completed / seconds if seconds else 0.0,
            "peak_running": standing.peak,
        }

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._engine.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _unwritten(self) -> int:
        return self._engine.intake.unwritten if self._engine.is_open and not self._engine.is_down() else 0

    async def _spawn_coroutine(self, task: Coroutine[Any, Any, Any]) -> None:
        loop = asyncio.get_running_loop()

        def run_on_the_loop() -> Any:
            return asyncio.run_coroutine_threadsafe(task, loop).result()

        try:
            await self._send("spawn", Work(None, run_on_the_loop, [((), {})], unpack=True), "nobody")
        except BaseException:
            task.close()
            raise

    async def _map(
        self, call: str, items: Sequence[Any], sizes: Sequence[int], func: Callable[[Any], Any]
    ) -> list[Any]:
        works, start = [], 0
        for size in sizes:
            works.append(Work(None, func, items[start : start + size], single=False))
            start += size
        began = time.perf_counter()
        parts = await self._gather(call, works)
        self._batch_seconds += time.perf_counter() - began
        return [value for part in parts for value in part]

    async def _gather(self, call: str, works: Sequence[Work]) -> list[Any]:
        """The values of *works*, in order; the first that fails ends it, and what has not begun is taken out."""
        self._engine.require_open()
        sent: list[tuple[Entry, Future[Any]]] = []
        try:
            for work in works:
                entry, future = await self._send(call, work, "reply")
                assert future is not None
                sent.append((entry, future))
            return [self._value(await asyncio.wrap_future(future)) for _, future in sent]
        except BaseException as error:
            left = [entry for entry, future in sent if not future.done()]
            if left and not isinstance(error, PoolClosedError):
                withdrawing = asyncio.get_running_loop().run_in_executor(None, self._engine.withdraw, left)
                await asyncio.shield(withdrawing)
            if isinstance(error, BrokerUnavailable):
                raise JoinError(error) from error
            raise

    async def _send(self, call: str, work: Work, answer: Answer) -> tuple[Entry, Future[Any] | None]:
        """Accepted *work*; waits while the queue is full. What blocks happens in a thread."""
        engine = self._engine
        engine.require_open()
        began = time.perf_counter()
        if not engine.is_started:
            await asyncio.to_thread(engine.start)
        if import_name(work.func):
            placed = engine.placing.place(call, work, by_value=True)
        else:
            placed = await asyncio.to_thread(engine.placing.place, call, work, by_value=True)
        entry, future = engine.entry(placed, answer)
        try:
            attempt = 0
            while not engine.intake.accept_now(entry) and not await asyncio.to_thread(engine.intake.accept, entry):
                await asyncio.sleep(poll(attempt))
                attempt += 1
        except BaseException:
            engine.refused(entry)
            raise
        if attempt == 0:
            self._calls += 1
            self._call_seconds += time.perf_counter() - began
        return entry, future

    def _value(self, answer: JobOutcome | Local) -> Any:
        self._item_seconds += answer.seconds
        if isinstance(answer, Local):
            if answer.error is not None:
                raise _failure(answer.error) from answer.error
            return answer.value
        if not answer.succeeded:
            error = answer.error
            raise _failure(error) from error
        try:
            return answer.value
        except Exception as error:
            raise JoinError(EnvelopeError(f"the result cannot be opened here: {error}")) from error


def _failure(error: BaseException) -> ParallelError:
    return JoinError(error) if isinstance(error, PoisonedError) else TaskFailed(error)


def shrinking(count: int, workers: int) -> list[int]:
    """Sizes of chunks that sum to *count*: each a part of what is left, down to a size that is worth its message."""
    sizes: list[int] = []
    left = count
    while left:
        sizes.append(min(left, max(1, left // (2 * workers), count // (32 * workers))))
        left -= sizes[-1]
    return sizes
