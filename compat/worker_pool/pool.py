"""WorkerPool: one class for both dialects. Blocking calls here, the asynchronous ones in parallel.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from graft.compat.worker_pool import termination
from graft.compat.worker_pool.context import Context
from graft.compat.worker_pool.data import PoolMetrics, Task
from graft.compat.worker_pool.errors import (
    ForceShutdownTimeoutError,
    QueueFullError,
    ShutdownTimeoutError,
    SubmitTimeoutError,
)
from graft.compat.worker_pool.parallel import Parallel
from graft.compat.worker_pool.placement import Work
from graft.compat.worker_pool.pool_client import PoolClient
from graft.compat.worker_pool.processor import TaskProcessor
from graft.compat.worker_pool.stream import ResultStream
from graft.compat.worker_pool.waiting import wait_until
from graft.tasks.errors import CancelledBatchError
from graft.tasks.monitoring import durations
from graft.tasks.pools.slot import identity
from graft.tasks.pools.state import Limits
from graft.tasks.sending.pool_batch import PoolTask


class WorkerPool(Parallel):
    """A bounded pool of workers with a bounded queue, on Celery workers wherever its tasks can travel.

    ``num_workers`` tasks run at once at most, and ``queue_size`` wait, in the whole cluster: every process that gives
    the same *name* shares one pool. A task that an idle worker is about to take needs no place in the queue.

    Args:
        num_workers: also ``worker_count``; at least 1.
        queue_size: also ``queue_capacity``; with 0, tasks are accepted only while a worker is idle.
        processor: a function of a Task, or a TaskProcessor, applied to every task; without one callable ``data`` is
            called without arguments, and other ``data`` is the output as it is.
        name: the pool's name in the cluster. Without one it is this process's own.
        place: force the cluster, or this process's threads; decided by rule R2 for each task unless given.

    Source: the worker-pool lesson in Go and the worker-pool task in Rust. Differences: ``Task.timeout`` is enforced,
    results are never lost for want of a reader, and using the pool after its end is an error instead of a panic.
    """

    _is_strict: ClassVar[bool] = False

    def __init__(
        self,
        num_workers: int | None = None,
        queue_size: int | None = None,
        *,
        worker_count: int | None = None,
        queue_capacity: int | None = None,
        processor: Callable[[Task], Any] | TaskProcessor | None = None,
        name: str | None = None,
        place: Literal["cluster", "local"] | None = None,
    ) -> None:
        workers = _one_of("num_workers", num_workers, "worker_count", worker_count)
        capacity = _one_of("queue_size", queue_size, "queue_capacity", queue_capacity)
        self._set_up(type(self).__name__, workers, workers, capacity, processor, name, place)

    @classmethod
    def new(cls, worker_count: int, queue_capacity: int) -> Self:
        """A pool that is started; it meets the broker at its first call.

        Raises:
            ValueError: *worker_count* or *queue_capacity* is below 1.
        """
        if queue_capacity < 1:
            raise ValueError(f"queue_capacity={queue_capacity} must be at least 1")
        return cls(worker_count, queue_capacity)

    def _set_up(
        self,
        kind: str,
        workers: int,
        limit: int,
        capacity: int,
        processor: Callable[[Task], Any] | TaskProcessor | None,
        name: str | None,
        place: Literal["cluster", "local"] | None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"num_workers={workers} must be at least 1")
        if capacity < 0:
            raise ValueError(f"queue_size={capacity} must not be negative")
        self._processor = processor.fn if isinstance(processor, TaskProcessor) else processor
        if self._processor is not None and not callable(self._processor):
            raise TypeError(f"processor={processor!r} is not callable")
        self._num_workers, self._queue_size = workers, capacity
        self._client = PoolClient(
            type(self).__name__, Limits(kind, workers, capacity), limit, name, place, is_strict=self._is_strict
        )
        self._stream = ResultStream(self._client)
        self._calls, self._call_seconds = 0, 0.0
        self._item_seconds, self._batch_seconds = 0.0, 0.0

    @property
    def num_workers(self) -> int:
        """The tasks that may run at once."""
        return self._num_workers

    @property
    def queue_size(self) -> int:
        """The tasks that may wait."""
        return self._queue_size

    @property
    def state(self) -> Literal["new", "running", "closing", "closed"]:
        """Where the pool stands; it never goes back. A round trip while it is in use."""
        if not self._client.is_open:
            return "new"
        state = self._client.status().state
        return "closed" if state == "gone" else state

    def start(self) -> None:
        """Begin processing; a second call does nothing.

        Raises:
            PoolClosedError: the pool has been shut down.
            PoolMismatchError: a pool of this name exists with other limits.
            BrokerUnavailable: the broker does not answer.
        """
        self._client.require_open()
        self._client.start()

    def submit_task(self, task: Task, *, context: Context | None = None) -> None:
        """Hand over *task*; never waits for room. Allowed before ``start``, up to ``queue_size`` tasks.

        *context*, if any, ends it when it ends.

        Raises:
            QueueFullError: no room.
            ContextError: *context* has ended.
            PoolClosedError: a shutdown has begun.
            PayloadTooLargeError: the task is larger than the deployment allows.
        """
        began = time.perf_counter()
        accepted = self._place(task, context)
        if not (self._client.accept_now(accepted) or self._client.accept(accepted)):
            raise QueueFullError
        self._note_call(began)
        if context is not None:
            context.add(self._client, accepted)

    def submit_task_with_timeout(self, task: Task, timeout: float, *, context: Context | None = None) -> None:
        """The same, waiting up to *timeout* seconds for room; 0 is one attempt.

        Raises:
            SubmitTimeoutError: no room in time.
            ContextError: *context* has ended, also while this waited.
        """
        _refuse_on_a_loop("submit_task_with_timeout", "await spawn(…)")
        deadline = time.monotonic() + timeout
        accepted = self._place(task, context)
        while not (self._client.accept_now(accepted) or self._client.accept(accepted)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise SubmitTimeoutError
            self._client.submission.wait_for_room(left)
            if context is not None:
                context.require_live()
        if context is not None:
            context.add(self._client, accepted)

    def cancel_task(self, task_id: int, *, running: bool = False) -> bool:
        """Cancel the tasks with this id that this process has submitted; whether there was one without a result.

        What has not begun does not begin. What runs on a worker is ended if *running*. The Result has a
        CancelledBatchError. See also :class:`Context`.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        found = self._client.unfinished(task_id)
        if found:
            self._client.cancel(found, CancelledBatchError(f"task {task_id} was cancelled"), running=running)
        return bool(found)

    def get_result(self) -> ResultStream:
        """The pool's one stream of results, the same at each call."""
        return self._stream

    def graceful_shutdown(self, timeout: float) -> None:
        """Refuse new tasks, and finish those that are queued and running; a second shutdown returns quietly.

        Raises:
            ShutdownTimeoutError: not finished after *timeout* seconds. What waited is dropped and counted as
                ``abandoned``; what runs is not waited for.
        """
        _refuse_on_a_loop("graceful_shutdown", "await shutdown()")
        if not self._drain(timeout):
            self._client.drop()
            self._client.finish()
            raise ShutdownTimeoutError

    def advanced_shutdown(self, timeout: float = 30.0, force_timeout: float = 5.0) -> None:
        """The same; what is not finished after *timeout* seconds is stopped by force.

        Processes that run a task of the pool are ended then: such a task has a Result with a CancelledBatchError, in
        the process that submitted it if that is this one, and counts as processed and as an error. A thread of the
        caller cannot be ended, and where Redis does not let this user command workers they are waited for instead, with
        a warning.

        Raises:
            ForceShutdownTimeoutError: something still ran *force_timeout* seconds later.
        """
        _refuse_on_a_loop("advanced_shutdown", "await shutdown()")
        if self._drain(timeout):
            return
        client = self._client
        dropped = client.drop()
        still_run = termination.end(dropped.envelopes)
        stopped = wait_until(lambda: not (client.threads.is_running or still_run()), force_timeout)
        if stopped:
            client.note_killed(dropped)
        client.finish()
        if not stopped:
            raise ForceShutdownTimeoutError

    def metrics(self) -> PoolMetrics:
        """What the pool has done so far, counted in the whole cluster."""
        status = self._client.status()
        done, seconds = status.completed, status.seconds
        return PoolMetrics(
            tasks_processed=done,
            total_duration=status.busy,
            error_count=status.failed,
            avg_latency=status.busy / done if done else 0.0,
            throughput=done / seconds if done and seconds else 0.0,
            **{f"p{percent}_latency": durations.percentile(status.took, percent) for percent in durations.SHOWN},
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drain(None)

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _place(self, task: Task, context: Context | None) -> PoolTask:
        """*task* as the pool takes it, and where it runs."""
        self._client.require_open()
        if context is not None:
            context.require_live()
        self._client.open()
        timeout = task.timeout if task.timeout > 0 else None
        if self._processor is not None:
            work = Work(task.id, self._processor, [task], timeout=timeout)
        elif callable(task.data):
            work = Work.call(task.id, task.data, timeout)
        else:
            work = Work(task.id, identity, [task.data], timeout=timeout)
        placed = self._client.placing.place("submit_task", work)
        return self._client.task(placed, "stream", task.priority if self._is_strict else 0.0)

    def _note_call(self, began: float) -> None:
        self._calls += 1
        self._call_seconds += time.perf_counter() - began

    def _drain(self, timeout: float | None) -> bool:
        client = self._client
        if client.is_down():
            return True
        client.close()
        if not wait_until(client.is_drained, timeout):
            return False
        client.finish()
        return True


def _one_of(first: str, value: int | None, second: str, other: int | None) -> int:
    if value is not None and other is not None:
        raise TypeError(f"{first} and {second} are two names for one value; give one of them")
    found = other if value is None else value
    if found is None:
        raise TypeError(f"{first} (or {second}) is missing")
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"{first if other is None else second} must be a whole number, not {found!r}")
    return found


def _refuse_on_a_loop(call: str, instead: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{call} waits, and would stop the running event loop; use {instead}, or a thread")
