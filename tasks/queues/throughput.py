"""How many messages workers have taken from each queue: counters in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from graft.config.redis_client import shared

TAKEN: Final = "graft:taken"


def add_taken(worker: str, counts: Mapping[str, int], client: Any) -> None:
    """Count messages that *worker* has taken from each queue."""
    with client.pipeline(transaction=False) as pipe:
        for queue, count in counts.items():
            pipe.hincrby(TAKEN, f"queue:{queue}", count)
        pipe.hincrby(TAKEN, f"worker:{worker}", sum(counts.values()))
        pipe.expire(TAKEN, 7 * 86400)
        pipe.execute()


def taken(client: Any = None) -> tuple[dict[str, int], dict[str, int]]:
    """Messages taken so far, by queue and by worker."""
    totals = {name.decode(): int(count) for name, count in (client or shared()).hgetall(TAKEN).items()}
    queues = {name[6:]: count for name, count in totals.items() if name.startswith("queue:")}
    return queues, {name[7:]: count for name, count in totals.items() if name.startswith("worker:")}
