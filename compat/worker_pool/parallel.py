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
from typing import Any, Self

from graft.compat.worker_pool.errors import JoinError, ParallelError, PoolClosedError, TaskCancelled, TaskFailed
from graft.compat.worker_pool.placement import Work
from graft.compat.worker_pool.pool_client import PoolClient
from graft.compat.worker_pool.waiting import poll, wait_until_async
from graft.tasks.callables.importable import import_name
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, EnvelopeError, PoisonedError
from graft.tasks.monitoring import durations
from graft.tasks.sending.pool_batch import CallResult, Destination, PoolTask


class Parallel:
    """The methods; the pool itself is made in pool.py."""

    _client: PoolClient
    _num_workers: int
    _queue_size: int
    _calls: int
    _call_seconds: float
    _item_seconds: float
    _batch_seconds: float

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
        await self._send("spawn", Work.call(None, task), "nobody")

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
        ((value,),) = await self._gather("spawn_cpu_work", [Work.call(None, work)])
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
        client = self._client
        if client.is_down():
            return
        await asyncio.to_thread(client.close)
        await wait_until_async(client.is_drained)
        await asyncio.to_thread(client.finish)

    def statistics(self) -> dict[str, Any]:
        """The pool in figures: counts and busy time of the whole cluster, dispatch and batches of this process.

        ``utilization`` is busy time / (workers x time since the start), ``batch_efficiency`` the time of the items of
        all batches / (workers x the time of the batches), ``average_dispatch_seconds`` the time inside a submitting
        call that found room. ``p50_seconds``, ``p95_seconds`` and ``p99_seconds`` are percentiles of how long tasks
        take. Blocks for a round trip.
        """
        status, unused = self._client.status(), self._unused()
        seconds, workers = status.seconds, self._num_workers
        return {
            "worker_count": workers,
            "queue_capacity": self._queue_size,
            "submitted": status.submitted - unused,
            "completed": status.completed,
            "failed": status.failed,
            "abandoned": status.abandoned,
            "running": status.running,
            "queued": max(0, status.queued - unused),
            "utilization": status.busy / (workers * seconds) if seconds else 0.0,
            "average_dispatch_seconds": self._call_seconds / self._calls if self._calls else 0.0,
            "batch_efficiency": self._item_seconds / (workers * self._batch_seconds) if self._batch_seconds else 0.0,
            "throughput": status.completed / seconds if seconds else 0.0,
            "peak_running": status.peak,
            **{f"p{percent}_seconds": durations.percentile(status.took, percent) for percent in durations.SHOWN},
        }

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._client.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _unused(self) -> int:
        return self._client.submission.unused if self._client.is_open and not self._client.is_down() else 0

    async def _spawn_coroutine(self, task: Coroutine[Any, Any, Any]) -> None:
        loop = asyncio.get_running_loop()

        def run_on_the_loop() -> Any:
            return asyncio.run_coroutine_threadsafe(task, loop).result()

        try:
            await self._send("spawn", Work.call(None, run_on_the_loop), "nobody")
        except BaseException:
            task.close()
            raise

    async def _map(
        self, call: str, items: Sequence[Any], sizes: Sequence[int], func: Callable[[Any], Any]
    ) -> list[Any]:
        works, start = [], 0
        for size in sizes:
            works.append(Work(None, func, items[start : start + size]))
            start += size
        began = time.perf_counter()
        parts = await self._gather(call, works)
        self._batch_seconds += time.perf_counter() - began
        return [value for part in parts for value in part]

    async def _gather(self, call: str, works: Sequence[Work]) -> list[list[Any]]:
        """The values of *works*, in order; the first that fails ends it, and what has not begun is taken out."""
        self._client.require_open()
        sent: list[tuple[PoolTask, Future[CallResult]]] = []
        try:
            for work in works:
                task, future = await self._send(call, work, "caller")
                assert future is not None
                sent.append((task, future))  # One by one: those that were sent are withdrawn if the next one fails.
            return [self._values(await asyncio.wrap_future(future)) for _, future in sent]
        except BaseException as error:
            left = [task for task, future in sent if not future.done()]
            if left and not isinstance(error, PoolClosedError):
                withdrawing = asyncio.get_running_loop().run_in_executor(None, self._client.withdraw, left)
                await asyncio.shield(withdrawing)
            if isinstance(error, BrokerUnavailable):
                raise JoinError(error) from error
            raise

    async def _send(self, call: str, work: Work, to: Destination) -> tuple[PoolTask, Future[CallResult] | None]:
        """Accepted *work*; waits while the queue is full. What blocks happens in a thread."""
        client = self._client
        client.require_open()
        began = time.perf_counter()
        if not client.is_started:
            await asyncio.to_thread(client.start)
        if import_name(work.func):
            placed = client.placing.place(call, work, by_value=True)
        else:
            placed = await asyncio.to_thread(client.placing.place, call, work, by_value=True)
        future: Future[CallResult] | None = None
        if to == "caller":
            future = Future()
            future.set_running_or_notify_cancel()  # Whoever cancels withdraws the task; the future ends by its outcome.
        task = client.task(placed, to, future=future)
        attempt = 0
        while not client.accept_now(task) and not await asyncio.to_thread(client.accept, task):
            await asyncio.sleep(poll(attempt))
            attempt += 1
        if attempt == 0:
            self._calls += 1
            self._call_seconds += time.perf_counter() - began
        return task, future

    def _values(self, result: CallResult) -> list[Any]:
        outcomes, seconds = result
        self._item_seconds += seconds
        for outcome in outcomes:
            if outcome.error is not None:
                raise _failure(outcome.error) from outcome.error
        return [outcome.value for outcome in outcomes]


def _failure(error: BaseException) -> ParallelError:
    if isinstance(error, CancelledBatchError):
        return TaskCancelled()
    return (
        JoinError(error) if isinstance(error, PoisonedError | EnvelopeError | BrokerUnavailable) else TaskFailed(error)
    )


def shrinking(count: int, workers: int) -> list[int]:
    """Sizes of chunks that sum to *count*: each a part of what is left, down to a size that is worth its message."""
    sizes: list[int] = []
    left = count
    while left:
        sizes.append(min(left, max(1, left // (2 * workers), count // (32 * workers))))
        left -= sizes[-1]
    return sizes
