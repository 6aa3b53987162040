"""Replaces a pool process by a new one, between two tasks: nothing that it runs is lost or cut short.

A process is replaced when it leaks (``GRAFT_LEAKS_RECYCLE``) or has run enough items (``GRAFT_ITEMS_PER_CHILD``).

Billiard replaces a process after so many messages, or when its memory after a task exceeds a limit, and for no other
reason. So the limit is set to what no process reaches, and a process that is to be replaced reports more than that.
"""

from __future__ import annotations

from typing import Any, Final

import billiard.pool
from celery import signals

from graft.config.deployment import settings
from graft.tasks.monitoring.run_counts import run_counts

LIMIT: Final = 1 << 40  # KiB: 1 PiB.


def prepare(worker: Any) -> None:
    """Have billiard compare at all. A limit that the deployment has set itself stays."""
    config = settings()
    if (config.leaks_recycle or config.items_per_child) and not worker.max_memory_per_child:
        worker.max_memory_per_child = LIMIT


def end_after_this_task(reason: str) -> None:
    """Have this pool process end after the task that it runs, or after its next one; *reason* is logged then."""
    billiard.pool.mem_rss = lambda: LIMIT + 1
    billiard.pool.MAXMEM_USED_FMT = reason


@signals.task_postrun.connect
def _end_after_enough_items(**_: Any) -> None:
    limit, total = settings().items_per_child, run_counts().total
    if limit is not None and total >= limit:
        end_after_this_task(f"this process has run {total} items (GRAFT_ITEMS_PER_CHILD={limit}) and is replaced")
