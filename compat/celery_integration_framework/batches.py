"""Batches of items, one task for each, a limited number at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final, Protocol
from uuid import uuid4

from graft.compat.celery_integration_framework.client import FrameworkTask
from graft.compat.celery_integration_framework.data import TaskResult
from graft.tasks.errors import ResultTimeout
from graft.tasks.sending import by_task_name

CHECK_EVERY: Final = 1.0  # Seconds between checks whether the processor has been closed.


class Framework(Protocol):
    """The part of the framework that sends batches and reads their results."""

    app: Any

    def submit_batch(self, task: FrameworkTask | str, batch: list[Any], queue: str, task_id: str) -> str: ...
    def get_task_result(self, task_id: str) -> TaskResult: ...
    def wait_for_task(self, task_id: str, timeout: float | None = None) -> TaskResult: ...


class CeleryBatchProcessor:
    """Sends batches of items as tasks, at most *max_parallel* of them at once.

    Source: ``celery_integration_framework.CeleryBatchProcessor``, which sent everything at once. Further batches are
    sent as earlier ones end, so the program lives until the last one has run, or ``shutdown()`` drops unsent ones.

    Raises:
        ValueError: *batch_size* or *max_parallel* is below 1.
    """

    def __init__(self, framework: Framework, batch_size: int = 10, max_parallel: int = 5) -> None:
        if batch_size < 1 or max_parallel < 1:
            raise ValueError(f"batch_size={batch_size} and max_parallel={max_parallel} must be at least 1")
        self.framework = framework
        self.batch_size = batch_size
        self.max_parallel = max_parallel
        self._threads = ThreadPoolExecutor(max_parallel, thread_name_prefix="graft-batches")
        self._runs: dict[str, Future[None]] = {}
        self._is_closed = threading.Event()

    def process_batch(self, task: FrameworkTask | str, items: Sequence[Any], queue: str = "normal") -> list[str]:
        """Cut *items* into batches and have *task* called with each, a list; one id for each batch. Returns at once.

        Raises:
            RuntimeError: after ``shutdown()``.
        """
        batches = [list(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]
        ids = [str(uuid4()) for _ in batches]
        for task_id, batch in zip(ids, batches, strict=True):
            self._runs[task_id] = self._threads.submit(self._run, task, batch, queue, task_id)
        return ids

    def _run(self, task: FrameworkTask | str, batch: list[Any], queue: str, task_id: str) -> None:
        self.framework.submit_batch(task, batch, queue, task_id)
        while not self._is_closed.is_set():
            try:
                by_task_name.wait([task_id], CHECK_EVERY, self.framework.app)
                return
            except ResultTimeout:
                continue

    def wait_for_batch(self, ids: Sequence[str], timeout: float | None = None) -> list[TaskResult]:
        """The batches' results when all have ended, or after *timeout* seconds in all; in the order of *ids*.

        Raises:
            Exception: the error of sending a batch.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for task_id in ids:
            self._await(task_id, None if deadline is None else max(0.0, deadline - time.monotonic()))
        return [self.framework.get_task_result(task_id) for task_id in ids]

    def _await(self, task_id: str, timeout: float | None) -> None:
        run = self._runs.get(task_id)
        if run is None:  # Another process's, or read before.
            self.framework.wait_for_task(task_id, timeout)
            return
        try:
            run.result(timeout)
        except (TimeoutError, CancelledError) as error:
            if not isinstance(error, CancelledError) and run.done():
                raise  # The batch's own: it could not be sent.
            return
        del self._runs[task_id]

    def close(self) -> None:
        """Drop unsent batches; sent ones run."""
        self._is_closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
