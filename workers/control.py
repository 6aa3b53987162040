"""Control commands of our own, beside Celery's."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command

from graft.config.deployment import settings
from graft.tasks.delivery import cancellation

LARGEST_POOL = 1024


@control_command(args=[("size", int), ("prefetch", int)], signature="N [PREFETCH]")
def graft_resize(state: Any, size: int, prefetch: int | None = None) -> dict[str, int]:
    """Bring this worker's pool to exactly *size* processes. Celery's own commands only add to it or take from it."""
    if not 1 <= size <= LARGEST_POOL:
        raise ValueError(f"size={size} must be from 1 to {LARGEST_POOL}")
    resize(state.consumer, size, prefetch)
    return {"processes": size, "prefetch": prefetch or size}


def resize(consumer: Any, size: int, prefetch: int | None = None) -> None:
    """Bring *consumer*'s pool to *size*, and its prefetch to *prefetch*, or one message for each slot.

    Raises:
        ValueError: the pool was to shrink, and too few of its processes are idle; those that are have gone.
    """
    # num_processes is the wanted size: new processes take a moment to appear in the list.
    change = size - consumer.pool.num_processes
    try:
        if change > 0:
            consumer.pool.grow(change)
        elif change < 0:
            consumer.pool.shrink(-change)
    finally:
        # Celery's grow and shrink commands adjust it by steps.
        wanted = prefetch or size
        # By difference: every message that waits for its time has raised the value by one and will lower it again.
        consumer.qos.value = max(1, consumer.qos.value + wanted - consumer.initial_prefetch_count)
        consumer.qos.update()  # set() alone is undone by the loop, which compares with the value.
        consumer.initial_prefetch_count = wanted


@control_command(args=[("task_id", str)], signature="ID")
def graft_cancel(state: Any, task_id: str) -> dict[str, str]:
    """Keep a task or batch that has not begun from running, also after restarts. Celery's revoke is in memory only."""
    if not task_id or len(task_id) > 255:
        raise ValueError(f"task_id={task_id!r:.50} must be an id of 1 to 255 characters")
    cancellation.cancel(task_id, settings().result_ttl)
    return {"cancelled": task_id}
