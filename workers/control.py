"""Control commands of our own, beside Celery's."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command

LARGEST_POOL = 1024


@control_command(args=[("size", int), ("prefetch", int)], signature="N [PREFETCH]")
def graft_resize(state: Any, size: int, prefetch: int | None = None) -> dict[str, int]:
    """Bring this worker's pool to exactly *size* processes. Celery's own commands only add to it or take from it."""
    if not 1 <= size <= LARGEST_POOL:
        raise ValueError(f"size={size} must be from 1 to {LARGEST_POOL}")
    consumer = state.consumer
    # What the pool is to have: new processes take a moment to appear among those it lists.
    change = size - consumer.pool.num_processes
    if change > 0:
        consumer.pool.grow(change)
    elif change < 0:
        consumer.pool.shrink(-change)
    # One waiting message for each process unless told otherwise; Celery's grow and shrink commands adjust it by steps.
    wanted = prefetch or size
    # By difference: every message that waits for its time has raised the value by one and will lower it again.
    consumer.qos.value = max(1, consumer.qos.value + wanted - consumer.initial_prefetch_count)
    consumer.qos.update()  # set() alone is undone by the loop, which compares with the value.
    consumer.initial_prefetch_count = wanted
    return {"processes": size, "prefetch": wanted}
