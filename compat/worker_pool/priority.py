"""Priorities: a queue in memory, and the pool that keeps the same order in the cluster."""

from __future__ import annotations

import heapq
import itertools
import threading

from graft.compat.worker_pool.data import Task
from graft.compat.worker_pool.pool import WorkerPool


class PriorityTaskQueue:
    """The highest priority comes out first, equals in the order in which they came. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Task]] = []

    def push(self, task: Task) -> None:
        with self._lock:
            heapq.heappush(self._heap, (-task.priority, next(self._numbers), task))

    def pop(self) -> Task:
        """The next task; IndexError when there is none."""
        with self._lock:
            if not self._heap:
                raise IndexError("pop from an empty PriorityTaskQueue")
            return heapq.heappop(self._heap)[2]

    def __len__(self) -> int:
        return len(self._heap)

    def len(self) -> int:
        """The number of tasks that wait."""
        return len(self._heap)


class PriorityWorkerPool(WorkerPool):
    """A WorkerPool in which the highest waiting task is next whenever a worker becomes free.

    The order is the pool's own, kept in Redis and decided when a task begins: what the broker has prefetched, and its
    few priority steps, do not matter. What runs is never interrupted. Difference: the lesson moves one task every
    10 ms, and lets one low task overtake.
    """

    _is_strict = True
