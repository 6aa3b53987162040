"""What goes into a pool, what comes out, and the pool in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Task:
    """One piece of work. ``timeout`` is in seconds, 0 means none; larger priorities go first where they count."""

    id: int
    data: Any = None
    priority: int = 0
    timeout: float = 0.0


@dataclass
class Result:
    """What became of one task: ``output``, or ``error``.

    ``duration`` is seconds of processing without the wait; ``worker_id`` the slot that the task held, from 0, and -1
    outside a pool. New: ``worker`` names the Celery worker, or the caller's process.
    """

    task_id: int | None = None
    output: Any = None
    error: BaseException | None = None
    duration: float | None = None
    worker_id: int = -1
    worker: str = ""


@dataclass(frozen=True)
class PoolMetrics:
    """Sums over the pool's tasks, in the whole cluster; times in seconds.

    ``avg_latency`` is total_duration / tasks_processed, ``throughput`` tasks_processed / seconds since the start. New:
    within ``p50_latency`` half of the tasks ended, within ``p95_latency`` 95 of 100, within ``p99_latency`` 99; to 5 %.
    """

    tasks_processed: int = 0
    total_duration: float = 0.0
    error_count: int = 0
    avg_latency: float = 0.0
    throughput: float = 0.0
    p50_latency: float = 0.0
    p95_latency: float = 0.0
    p99_latency: float = 0.0
