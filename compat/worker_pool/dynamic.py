"""DynamicWorkerPool: as many workers as the queue asks for, between two bounds."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from graft.compat import worker_admin
from graft.compat.async_worker_optimization.data import LoadLevel
from graft.compat.worker_pool.data import Task
from graft.compat.worker_pool.pool import WorkerPool
from graft.compat.worker_pool.processor import TaskProcessor
from graft.config.queues import table
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import worker_registry

logger = logging.getLogger("graft.compat.worker_pool")


def decide(queue_length: int, current: int, minimum: int, maximum: int) -> int:
    """The change in workers: one more above twice the workers, one less below half of them (rounded down), or 0."""
    if queue_length > current * 2 and current < maximum:
        return 1
    if queue_length < current // 2 and current > minimum:
        return -1
    return 0


@dataclass(frozen=True)
class PoolLoad:
    """How busy a pool is at one moment, as it was measured.

    ``workers`` are its slots, of which tasks run in ``running``; ``queued`` tasks wait. ``processes`` are what the
    workers that are alive could run at once; where they are fewer than the slots, more slots do not help.
    """

    workers: int
    running: int
    queued: int
    processes: int

    @property
    def utilization(self) -> float:
        """The share of the slots in which a task runs, from 0 to 1."""
        return self.running / self.workers if self.workers else 0.0

    @property
    def level(self) -> LoadLevel:
        """HIGH where more than twice as many wait as there are slots, CRITICAL if no process is free either; LOW where
        less than half of the slots are in use and fewer tasks wait than that; MEDIUM in between.
        """
        if self.queued > 2 * self.workers:
            return LoadLevel.CRITICAL if self.running >= min(self.workers, self.processes) else LoadLevel.HIGH
        if self.running + self.queued < self.workers / 2:
            return LoadLevel.LOW
        return LoadLevel.MEDIUM


class DynamicWorkerPool(WorkerPool):
    """A WorkerPool that starts with *min_workers* and looks at its queue every *interval* seconds once started.

    A worker that is removed finishes its task first. With *worker_group* (the part of a Celery worker's name before
    ``@``) those workers' pools are resized along with the pool's own slots; their processes are what the tasks run in.
    """

    def __init__(
        self,
        min_workers: int,
        max_workers: int,
        queue_size: int,
        *,
        interval: float = 5.0,
        worker_group: str | None = None,
        processor: Callable[[Task], Any] | TaskProcessor | None = None,
        name: str | None = None,
        place: Literal["cluster", "local"] | None = None,
    ) -> None:
        if min_workers < 1 or max_workers < min_workers:
            raise ValueError(f"1 <= min_workers={min_workers} <= max_workers={max_workers} must hold")
        if not interval > 0:
            raise ValueError(f"interval={interval!r} must be more than 0 seconds")
        kind = f"{type(self).__name__}:{min_workers}"
        self._set_up(kind, max_workers, min_workers, queue_size, processor, name, place)
        self.min_workers, self.max_workers, self.interval = min_workers, max_workers, interval
        self.worker_group = worker_group
        self._group_size = 0
        self._monitor: threading.Thread | None = None

    @property
    def current_workers(self) -> int:
        """The slots that the pool has now."""
        return self._client.status().limit or self.min_workers

    def load(self) -> PoolLoad:
        """New: how busy the pool is now, in the whole cluster; ``load().level`` is what a LoadLevel was chosen for by
        hand. Blocks for a round trip or two.
        """
        status = self._client.status()
        limit = status.limit or self.min_workers
        processes = worker_registry.slots(table().batch) if self._client.is_in_redis else limit
        return PoolLoad(limit, status.running, max(0, status.queued - self._unused()), processes)

    def start(self) -> None:
        """Begin processing and watching the queue; a second call does nothing."""
        super().start()
        if self._monitor is None:
            self._monitor = threading.Thread(
                target=_watch, args=(weakref.ref(self), self.interval), name="graft-pool-monitor", daemon=True
            )
            self._monitor.start()

    def monitor_load(self) -> int:
        """Look at the queue once, and change by one worker at most; the change. Called by itself once started.

        Bound workers that are too busy to shrink, or do not answer, are asked again at the next look.
        """
        status = self._client.status()
        if status.state not in ("new", "running"):
            return 0
        change = decide(status.queued, status.limit, self.min_workers, self.max_workers)
        if change:
            self._client.resize(status.limit + change)
        self._resize_group(status.limit + change)
        return change

    def _resize_group(self, workers: int) -> None:
        if self.worker_group is None or workers == self._group_size:
            return
        try:
            worker_admin.resize_workers(self.worker_group, workers)
        except TaskQueueError as error:
            logger.warning("the workers %s@… do not follow the pool yet: %s", self.worker_group, error)
        else:
            self._group_size = workers


def _watch(reference: weakref.ref[DynamicWorkerPool], interval: float) -> None:
    while True:
        time.sleep(interval)
        pool = reference()
        if pool is None or pool._client.is_down():
            return
        try:
            pool.monitor_load()
        except (TaskQueueError, OSError) as error:
            logger.warning("the load of a pool cannot be followed: %s", error)
        del pool
