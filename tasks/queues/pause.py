"""Pausing queues: a set in Redis that workers obey, later ones too; and what was taken of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from graft.config.queues import names
from graft.config.redis_client import shared

PAUSED: Final = "graft:paused"
TAKEN: Final = "graft:taken"
NEVER: Final = "maintenance"  # Checks and upkeep run there, also when everything else stands still.


def paused(client: Any = None) -> frozenset[str]:
    """The queues that no worker reads for now."""
    return frozenset(name.decode() for name in (client or shared()).smembers(PAUSED))


def pause(queue: str) -> None:
    """Have no worker take messages from *queue*; what runs is finished. Workers obey within two seconds."""
    if queue not in names():
        raise ValueError(f"there is no queue {queue!r}; there are {', '.join(names())}")
    if queue == NEVER:
        raise ValueError(f"{queue} is not paused: checks and upkeep run there; stop Beat instead")
    shared().sadd(PAUSED, queue)


def resume(queue: str) -> bool:
    """Have workers read *queue* again; whether it was paused."""
    return bool(shared().srem(PAUSED, queue))


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
