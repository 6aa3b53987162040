"""One series of the deployment's last day: Beat has it noted, ``celery -A graft html-report`` draws it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from graft.config.redis_client import broker, server_time, shared
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.health import measure, report_store
from graft.tasks.health.verdicts import HealthReport
from graft.tasks.monitoring import function_stats, worker_load
from graft.tasks.queues.depth import unacked

HISTORY: Final = "graft:history"
LENGTH: Final = 2880  # A day, at one snapshot every 30 s.
QUEUES: Final = 200  # In one snapshot, those with the most waiting; and values of checks: a day takes 45 MB at most.
CHECKS: Final = 200
FIGURES: Final = {"depth": 0, "age": 1}  # Where ``queues`` has the value of a check of one queue.
TAIL: Final = 10  # Snapshots that are read to see what has been added.


@dataclass(frozen=True)
class Snapshot:
    """The deployment at one moment. ``queues`` is name -> [messages waiting, age of the oldest in seconds].

    ``items``, ``errors`` and ``busy`` (seconds) are totals since the callables were first run. ``lanes`` is name ->
    [slots that run something, slots]: a thousand idle slots of the io lane must not hide a full cpu lane. ``checks``
    is the name of a check -> its value in the last health report, but for the depth and age of queues.
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
    checks: dict[str, float] = field(default_factory=dict)

    def value_of(self, check: str, subject: str) -> float | None:
        """The value of a check then; None where it is not known. Pure."""
        if check in FIGURES:
            pair = self.queues.get(subject)
            return pair[FIGURES[check]] if pair else None
        return self.checks.get(f"{check} {subject}".strip())


def snapshot(client: Any = None) -> Snapshot:
    """The deployment now."""
    client = client or shared()
    now = server_time(client)
    _, beats = measure.workers(client, now)
    with broker(client_name="graft-health") as queue_side:
        queues = measure.queues(queue_side, client, beats, now)
    totals = function_stats.read().values()
    shown = sorted(queues, key=lambda queue: -queue.waiting)[:QUEUES]
    *lanes, everything = worker_load.loads({queue.name: queue.waiting for queue in queues}, beats, unacked())
    return Snapshot(
        at=now,
        queues={queue.name: [queue.waiting, round(queue.oldest or 0.0, 3)] for queue in shown},
        items=sum(one.items for one in totals),
        errors=sum(one.errors for one in totals),
        busy=sum(one.seconds for one in totals),
        slots=everything.slots,
        running=everything.running,
        per_slot=everything.per_slot,
        dead_letters=dead_letters.count(),
        lanes={lane.lane: [lane.running, lane.slots] for lane in lanes if lane.slots},
        checks=checked(report_store.last(client)),
    )


def checked(report: HealthReport | None) -> dict[str, float]:
    """The values of the checks of *report*, of those that are not ok first. Pure."""
    verdicts = sorted(report.verdicts, key=lambda one: one.state == "ok") if report else ()
    valued = [(one.name, one.value) for one in verdicts if one.value is not None and one.check not in FIGURES]
    return {name: float(f"{value:.4g}") for name, value in valued[:CHECKS]}


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


def newer(client: Any, known: Sequence[Snapshot]) -> list[Snapshot]:
    """The same, for whoever knows them up to some moment: as a rule only what was added since is read."""
    tail = read(client, TAIL) if known else []
    if not tail or tail[0].at > known[-1].at:
        return read(client)
    return [*known, *(one for one in tail if one.at > known[-1].at)][-LENGTH:]


_FIELDS: Final = frozenset(Snapshot.__dataclass_fields__)
