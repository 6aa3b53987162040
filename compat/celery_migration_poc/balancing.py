"""Brings running workers to the size of a load level, exactly, up or down."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from graft.compat.async_worker_optimization.resources import Size
from graft.compat.worker_admin import is_in_group, resize
from graft.config.deployment import app, app_name
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring.worker_registry import workers

RESIZABLE: Final = ("direct_pool", "prefork")  # The io lane's threads make no processes.
LOOK_EVERY: Final = 0.1


def reach(size: Size, worker_group: str | None, timeout: float) -> None:
    """Return once every prefork worker (of *worker_group*) has ``size.processes`` and fetches what they need.

    Raises:
        TaskQueueError: no such worker is alive, or one did not reach the size within *timeout* seconds, for example
            because its surplus processes are all busy.
    """
    names = [
        worker.name
        for worker in workers()
        if worker.pool in RESIZABLE and (worker_group is None or is_in_group(worker.name, worker_group))
    ]
    if not names:
        of = f" named {worker_group}@…" if worker_group else ""
        raise TaskQueueError(f"no prefork worker{of} is alive; start one with: celery -A {app_name()} worker")
    deadline = time.monotonic() + timeout
    _try_until(deadline, partial(resize, names, size.processes, size.processes * size.prefetch))
    _try_until(deadline, lambda: _check_processes(names, size.processes))


def _try_until(deadline: float, step: Callable[[], object]) -> None:
    while True:
        try:
            step()
            return
        except TaskQueueError:  # Busy processes cannot be taken away yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY)


def _check_processes(names: list[str], processes: int) -> None:
    """Refuse a worker that does not list so many processes: it answers a resize before its pool has followed."""
    stats = app().control.inspect(names, timeout=2.0, limit=len(names)).stats() or {}
    wrong = [name for name in names if len(stats.get(name, {}).get("pool", {}).get("processes", ())) != processes]
    if wrong:
        raise TaskQueueError(f"{', '.join(wrong)} did not reach {processes} processes in time")
