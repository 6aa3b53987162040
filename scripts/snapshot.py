"""Queues, workers and batches at one moment, for ``top`` and ``queue list``; and the rates between two moments."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from graft.config import redis_clock
from graft.config.deployment import settings
from graft.config.redis_client import patient_broker, shared
from graft.config.transport import due
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.health import checks, report_store
from graft.tasks.health.measure import loops
from graft.tasks.health.measurements import Queue
from graft.tasks.health.verdicts import STALE, HealthReport, HealthState, Verdict, worst
from graft.tasks.messages.message_format import SENT_AT, waits_since
from graft.tasks.monitoring import function_stats, worker_registry
from graft.tasks.monitoring.function_stats import FunctionStats
from graft.tasks.queues import existing, pause, throughput
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote
from graft.tasks.shared import limit_states
from graft.tasks.shared.limit_states import LimitState

RECENT: Final = 3600.0  # Seconds for which a limit that nobody uses is shown.


@dataclass(frozen=True)
class QueueLine:
    """One queue. ``oldest`` is the age in seconds of the message at its head, where it says so.

    ``later`` are messages whose time has not come.
    """

    name: str
    waiting: int
    oldest: float | None
    readers: int
    is_paused: bool
    taken: int
    later: int = 0

    @property
    def remark(self) -> str:
        """A warning about the queue for people, or ""."""
        if self.is_paused:
            return "paused"
        return "no reader" if self.waiting and not self.readers else ""


@dataclass(frozen=True)
class WorkerLine:
    name: str
    pool: str
    busy: int
    slots: int
    waiting: int
    memory: int
    taken: int
    lag: float | None


@dataclass(frozen=True)
class Snapshot:
    """The deployment at one moment. ``health`` is "" before the first check; ``bad`` names checks that are not ok."""

    at: float
    queues: tuple[QueueLine, ...] = ()
    workers: tuple[WorkerLine, ...] = ()
    batches: tuple[BatchNote, ...] = ()
    functions: dict[str, FunctionStats] = field(default_factory=dict)
    limits: tuple[LimitState, ...] = ()
    dead_letters: int = 0
    health: HealthState | str = ""
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """Changes each second between two snapshots, by name. ``grows`` is that of a queue's length."""

    out: dict[str, float] = field(default_factory=dict)
    into: dict[str, float] = field(default_factory=dict)
    grows: dict[str, float] = field(default_factory=dict)
    workers: dict[str, float] = field(default_factory=dict)
    items: dict[str, float] = field(default_factory=dict)
    errors: float = 0.0
    retries: float = 0.0


def take() -> Snapshot:
    """The state of the deployment now.

    Raises:
        RedisError: Redis does not answer.
    """
    client = shared()
    beats = worker_registry.workers(client)
    by_queue, by_worker = throughput.taken(client)
    paused = pause.paused(client)
    lags = {loop.process.partition(" ")[0]: loop.lag for loop in loops(client, beats)}
    queue_side = patient_broker()
    names = existing.names(queue_side)
    waits = existing.heads(names, queue_side)
    later = due.counts(queue_side)
    now = time.time()
    read_by = Counter(queue for beat in beats for queue in beat.queues)
    queues = []
    for queue in names:
        mine = waits.get(queue, {}).values()
        ages = [now - sent for _, head in mine if (sent := _sent_at(head))]
        oldest = max(0.0, *ages) if ages else None
        taken = by_queue.get(queue, 0)
        line = QueueLine(
            queue,
            sum(length for length, _ in mine),
            oldest,
            read_by[queue],
            queue in paused,
            taken,
            later.get(queue, 0),
        )
        queues.append(line)
    verdicts = current(report_store.last(client), queues, len(beats), now)
    return Snapshot(
        at=now,
        queues=tuple(queues),
        workers=tuple(
            WorkerLine(
                beat.name, beat.pool, beat.busy, beat.processes, beat.waiting, beat.memory, by_worker.get(beat.name, 0),
                lags.get(beat.name),
            )
            for beat in beats
        ),
        batches=tuple(progress.running(client)),
        functions=function_stats.read(),
        limits=tuple(one for one in limit_states.read(client) if redis_clock.now() - one.last < RECENT),
        dead_letters=dead_letters.count(),
        health=worst(verdict.state for verdict in verdicts) if verdicts else "",
        bad=tuple(verdict.name for verdict in verdicts if verdict.state != "ok"),
    )  # fmt: skip


def current(report: HealthReport | None, queues: Iterable[QueueLine], alive: int, now: float) -> tuple[Verdict, ...]:
    """The verdicts of *report*, those replaced that the facts of this moment overrule. None where none is known.

    A report that is too old says nothing but that; then, and without one, the facts alone are judged.
    """
    limits = settings()
    live = [
        checks.alive(alive),
        *(checks.depth(Queue(one.name, one.waiting, one.oldest, one.readers, is_paused=one.is_paused), limits)
          for one in queues),
    ]  # fmt: skip
    limit = max(STALE * limits.health_every, 5.0)
    if report is None or now - report.at > limit:
        bad = tuple(verdict for verdict in live if verdict.state != "ok")
        age = None if report is None else now - report.at
        return (*bad, Verdict("last check", "", "failing", "", age, limit, "s")) if bad or report else ()
    kept = (verdict for verdict in report.verdicts if verdict.check not in ("workers", "depth"))
    return (*live, *kept)


def _sent_at(raw: bytes) -> float | None:
    # The header alone: a message may hold a megabyte.
    start, eta = raw.find(SENT_AT.encode()), re.search(rb'"eta": ?"([^"]{1,40})"', raw)
    sent = raw[start + len(SENT_AT) + 2 : start + len(SENT_AT) + 24].split(b",")[0].split(b"}")[0]
    return waits_since({SENT_AT: sent.decode("ascii", "replace"), "eta": eta[1].decode() if eta else None})


def rates(before: Snapshot, after: Snapshot) -> Rates:
    """The changes each second from *before* to *after*. Pure."""
    seconds = max(after.at - before.at, 1e-3)
    old = {queue.name: queue for queue in before.queues}
    out, into, grows = {}, {}, {}
    for queue in after.queues:
        was = old.get(queue.name, queue)
        grown = queue.waiting - was.waiting
        left = max(0, queue.taken - was.taken)
        grows[queue.name] = grown / seconds
        out[queue.name] = left / seconds
        into[queue.name] = max(0, grown + left) / seconds
    counted = {worker.name: worker.taken for worker in before.workers}
    none = FunctionStats()
    totals = [
        [sum(getattr(each, name) for each in one.functions.values()) for name in ("errors", "retries")]
        for one in (before, after)
    ]
    return Rates(
        out,
        into,
        grows,
        {one.name: max(0, one.taken - counted.get(one.name, one.taken)) / seconds for one in after.workers},
        {
            name: max(0, one.items - before.functions.get(name, none).items) / seconds
            for name, one in after.functions.items()
        },
        max(0, totals[1][0] - totals[0][0]) / seconds,
        max(0, totals[1][1] - totals[0][1]) / seconds,
    )


def seconds_left(note: BatchNote) -> float | None:
    """Seconds until the batch is done at its rate. None: its length is not known, no item is done, or it is paused."""
    if not note.total or not note.rate or note.is_paused:
        return None
    return (note.total - note.done) / note.rate
