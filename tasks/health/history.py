"""One series of the deployment's last day: Beat has it noted, ``celery -A graft html-report`` draws it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from graft.config.redis_client import broker, server_time, shared
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.health import measure
from graft.tasks.monitoring import function_stats, worker_load
from graft.tasks.queues.depth import unacked

HISTORY: Final = "graft:history"
LENGTH: Final = 2880  # A day, at one snapshot every 30 s.


@dataclass(frozen=True)
class Snapshot:
    """The deployment at one moment. ``queues`` is name -> [messages waiting, age of the oldest in seconds].

    ``items``, ``errors`` and ``busy`` (seconds) are totals since the callables were first run. ``lanes`` is name ->
    [slots that run something, slots]: a thousand idle slots of the io lane must not hide a full cpu lane.
    """

    at: float
    queues: dict[str, list[float]] = field(default_factory=dict)
    items: int = 0
    errors: int = 0
    busy: float = 0.0
    slots: int = 0
    running: int = 0
    per_slot: float = 0.0
    dead_letters: int = 0
    lanes: dict[str, list[int]] = field(default_factory=dict)


def snapshot(client: Any = None) -> Snapshot:
    """The deployment now."""
    client = client or shared()
    now = server_time(client)
    _, beats = measure.workers(client, now)
    with broker(client_name="graft-health") as queue_side:
        queues = measure.queues(queue_side, client, beats, now)
    totals = function_stats.read().values()
    *lanes, everything = worker_load.loads({queue.name: queue.waiting for queue in queues}, beats, unacked())
    return Snapshot(
        at=now,
        queues={queue.name: [queue.waiting, round(queue.oldest or 0.0, 3)] for queue in queues},
        items=sum(one.items for one in totals),
        errors=sum(one.errors for one in totals),
        busy=sum(one.seconds for one in totals),
        slots=everything.slots,
        running=everything.running,
        per_slot=everything.per_slot,
        dead_letters=dead_letters.count(),
        lanes={lane.lane: [lane.running, lane.slots] for lane in lanes if lane.slots},
    )


def note() -> None:
    """Add a snapshot to the history."""
    client = shared()
    with client.pipeline() as pipe:
        pipe.rpush(HISTORY, json.dumps(asdict(snapshot(client))))
        pipe.ltrim(HISTORY, -LENGTH, -1)
        pipe.execute()


def read(client: Any, limit: int = LENGTH) -> list[Snapshot]:
    """The snapshots of the last day, the oldest first."""
    found: list[Mapping[str, Any]] = [json.loads(text) for text in client.lrange(HISTORY, -limit, -1)]
    return [Snapshot(**{name: value for name, value in record.items() if name in _FIELDS}) for record in found]


_FIELDS: Final = frozenset(Snapshot.__dataclass_fields__)
