"""Looking into queues, and pausing them: a set in Redis that workers obey (workers/pauses.py), later ones too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from graft.config.queues import names
from graft.config.redis_client import connect, shared
from graft.config.settings import settings
from graft.tasks.depths import lists

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


def resume(queue: str) -> None:
    shared().srem(PAUSED, queue)


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


@dataclass(frozen=True)
class Waiting:
    """One message that waits. ``sent_at`` is seconds since the epoch, where the sender said so."""

    id: str
    task: str
    what: str
    priority: int
    size: int
    sent_at: float | None


def peek(queue: str, limit: int = 10) -> list[Waiting]:
    """The messages that are taken next, in that order. They stay where they are."""
    found: list[Waiting] = []
    with connect(settings().model_copy(update={"result_backend": settings().broker_url})) as client:
        for step, key in enumerate(lists(queue)):
            if len(found) < limit:
                # Messages come in on the left and are taken on the right.
                page = client.lrange(key, -(limit - len(found)), -1)
                found += [_read(raw, step) for raw in reversed(page)]
    return found


def _read(raw: bytes, priority: int) -> Waiting:
    try:
        headers = json.loads(raw)["headers"]
        sent = headers.get("graft_sent_at")
        return Waiting(
            str(headers["id"]), str(headers["task"]), str(headers.get("argsrepr") or ""), priority, len(raw),
            float(sent) if sent else None,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        return Waiting("?", "not a task", raw[:60].decode("utf-8", "replace"), priority, len(raw), None)
