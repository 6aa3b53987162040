"""Brings running workers to the size of a load level, exactly, up or down."""

from __future__ import annotations

import time
from typing import Final

from graft.compat import worker_admin
from graft.compat.async_worker_optimization.resources import Size
from graft.config.deployment import app
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring.worker_registry import WorkerBeat, workers

RESIZABLE: Final = "prefork"  # The io lane's threads make no processes.
LOOK_EVERY: Final = 0.1


def reach(size: Size, worker_group: str | None, timeout: float) -> None:
    """Return once every prefork worker (of *worker_group*) has ``size.processes`` and fetches what they need.

    Raises:
        TaskQueueError: no such worker is alive, or one had not got there within *timeout* seconds, such as one whose
            surplus processes are all busy.
    """
    chosen = [worker for worker in workers() if worker.pool == RESIZABLE and worker_group in (None, _group(worker))]
    if not chosen:
        of = f" named {worker_group}@…" if worker_group else ""
        raise TaskQueueError(f"no prefork worker{of} is alive; start one with: celery -A graft worker")
    deadline = time.monotonic() + timeout
    for group in sorted({_group(worker) for worker in chosen}):
        _resize(group, size, deadline)
    _await_processes([worker.name for worker in chosen], size, deadline)


def _group(worker: WorkerBeat) -> str:
    return worker.name.partition("@")[0]


def _resize(group: str, size: Size, deadline: float) -> None:
    while True:
        try:
            worker_admin.resize_workers(group, size.processes, size.processes * size.prefetch)
            return
        except TaskQueueError:  # Processes that are busy cannot be taken away yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY)


def _await_processes(names: list[str], size: Size, deadline: float) -> None:
    """Wait until each worker lists so many processes: it answers a resize before its pool has followed."""
    while True:
        stats = app().control.inspect(names, timeout=2.0, limit=len(names)).stats() or {}
        wrong = [
            name for name in names if len(stats.get(name, {}).get("pool", {}).get("processes", ())) != size.processes
        ]
        if not wrong:
            return
        if time.monotonic() > deadline:
            raise TaskQueueError(f"{', '.join(wrong)} did not come to {size.processes} processes in time")
        time.sleep(LOOK_EVERY)
