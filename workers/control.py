"""Control commands of our own, beside Celery's."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command

from graft.workers.heartbeat import processes

LARGEST_POOL = 1024


@control_command(args=[("size", int), ("prefetch", int)], signature="N [PREFETCH]")
def graft_resize(state: Any, size: int, prefetch: int | None = None) -> dict[str, int]:
    """Bring this worker's pool to exactly *size* processes. Celery's own commands only add to it or take from it."""
    if not 1 <= size <= LARGEST_POOL:
        raise ValueError(f"size={size} must be from 1 to {LARGEST_POOL}")
    consumer = state.consumer
    change = size - processes(consumer.pool)
    if change > 0:
        consumer.pool.grow(change)
    elif change < 0:
        consumer.pool.shrink(-change)
    # One waiting message for each process unless told otherwise; Celery's grow and shrink commands adjust it by steps.
    wanted = prefetch or size
    consumer.qos.set(wanted)
    consumer.initial_prefetch_count = wanted
    return {"processes": size, "prefetch": wanted}
