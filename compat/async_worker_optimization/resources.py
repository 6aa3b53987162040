"""A pool's size as a calculation, and on request as the real size of a worker group."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final, NamedTuple

from graft.compat.async_worker_optimization import redis_records
from graft.compat.async_worker_optimization.data import LoadLevel
from graft.compat.async_worker_optimization.worker_group import WorkerGroup

RECORD: Final = f"{redis_records.PREFIX}resource_pool:"


class Size(NamedTuple):
    """A worker's size: pool processes, and messages fetched for each of them."""

    processes: int
    prefetch: int


SIZES: Final = {
    LoadLevel.LOW: Size(2, 1),
    LoadLevel.MEDIUM: Size(4, 2),
    LoadLevel.HIGH: Size(8, 4),
    LoadLevel.CRITICAL: Size(16, 8),
}


class ResourcePool:
    """A number of workers between two bounds, multiplied under load and divided without.

    Source: ``async_worker_optimization.ResourcePool``. Differences: the number always stays within the bounds; a
    factor above 1 adds at least one worker below the ceiling; *min_workers* above *max_workers* and a factor of 0 or
    less are a ValueError; a ceiling of 0 gives a utilization of 0.0. A bound pool (:meth:`bind`) sizes a real worker
    group.

    Attributes:
        active_workers: starts at *min_workers*.
        load_level: the latest level; LOW at first.
        worker_group: the name of the bound group, or None.
    """

    def __init__(
        self,
        name: str,
        min_workers: int,
        max_workers: int,
        scaling_factor: float = 2.0,
        idle_timeout: float = 30,
    ) -> None:
        if min_workers > max_workers:
            raise ValueError(f"min_workers={min_workers} must not be above max_workers={max_workers}")
        if not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor={scaling_factor} must be a finite number above 0")
        self.name = name
        self.min_workers = min_workers
        self.max_workers = max_workers
        self.scaling_factor = scaling_factor
        self.idle_timeout = idle_timeout
        self.active_workers = min_workers
        self.load_level = LoadLevel.LOW
        self._group: WorkerGroup | None = None
        self._is_recorded = False

    @property
    def worker_group(self) -> str | None:
        return self._group.name if self._group else None

    def get_active_workers(self) -> int:
        return self.active_workers

    def get_utilization(self) -> float:
        """``active_workers / max_workers``: the share of the ceiling in use, not the load."""
        return self.active_workers / self.max_workers if self.max_workers else 0.0

    def simulate_load(self, high: object) -> None:
        """Multiply the workers by the factor when *high* is true, else divide them; cut towards zero."""
        self.load_level = LoadLevel.HIGH if high else LoadLevel.LOW
        self._resize(self._after_load() if high else int(self.active_workers / self.scaling_factor))

    def _after_load(self) -> int:
        wanted = int(min(self.active_workers * self.scaling_factor, self.max_workers))
        return max(wanted, self.active_workers + 1) if self.scaling_factor > 1 else wanted

    def apply_load(self, level: LoadLevel) -> None:
        """Take the size and prefetch of *level* (``SIZES``), within the pool's bounds; :meth:`applied` waits for it."""
        self.load_level = level
        self._resize(SIZES[level].processes, SIZES[level].prefetch)

    def bind(self, worker_group: str) -> ResourcePool:
        """Give the workers named ``<worker_group>@…`` or ``<worker_group>1@…`` this pool's size, now and later.

        They grow at once, and shrink after ``idle_timeout`` seconds. Errors are logged, and raised by
        :meth:`applied`. The pool is recorded in Redis from here on. Returns the pool.
        """
        self._group = WorkerGroup(worker_group)
        self._resize(self.active_workers)
        return self.record()

    async def applied(self) -> dict[str, int]:
        """Wait until the bound group has the latest size; its pool processes by node name.

        Raises:
            TaskQueueError: no worker of the group answered.
            RuntimeError: the pool is not bound.
        """
        if self._group is None:
            raise RuntimeError(f"pool {self.name!r} is not bound to a worker group; call bind() first")
        return await asyncio.wrap_future(self._group.settled())

    def _resize(self, workers: int, prefetch: int = 1) -> None:
        self.active_workers = min(max(workers, self.min_workers), self.max_workers)
        if self._group:
            self._group.want(self.active_workers, self.active_workers * prefetch, self.idle_timeout)
        if self._is_recorded:
            self.record()

    def record(self) -> ResourcePool:
        """Keep this pool's figures in Redis from now on, in the background; :meth:`recorded` reads them back."""
        self._is_recorded = True
        redis_records.keep(
            RECORD + self.name,
            {
                "min_workers": self.min_workers,
                "max_workers": self.max_workers,
                "scaling_factor": self.scaling_factor,
                "idle_timeout": self.idle_timeout,
                "active_workers": self.active_workers,
                "load_level": self.load_level.value,
                "worker_group": self.worker_group or "",
                "updated_at": time.time(),
            },
        )
        return self

    @classmethod
    def recorded(cls, name: str) -> ResourcePool:
        """The pool of that name as it was last recorded, here or in another process; not bound.

        Raises:
            KeyError: none was recorded, or 30 days have passed.
            BrokerUnavailable: Redis does not answer.
        """
        kept: dict[str, Any] = redis_records.read(RECORD + name)
        if not kept:
            raise KeyError(name)
        pool = cls(
            name,
            int(kept["min_workers"]),
            int(kept["max_workers"]),
            float(kept["scaling_factor"]),
            float(kept["idle_timeout"]),
        )
        pool.active_workers = int(kept["active_workers"])
        pool.load_level = LoadLevel(kept["load_level"])
        return pool
