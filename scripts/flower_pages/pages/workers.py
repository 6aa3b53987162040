"""The workers now: lane, slots, memory, and what each runs for how long."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.reading import UNREACHABLE
from graft.tasks.leaks import samples
from graft.tasks.monitoring import worker_registry
from graft.tasks.monitoring.worker_registry import WorkerBeat
from graft.tasks.queues.peek import labelled

ASKED: Final = 1.0  # Seconds that workers have to say what they run.
SHOWN: Final = 30  # Running tasks of one worker.


@dataclass(frozen=True)
class Running:
    """A task that runs now; ``since`` is seconds since the epoch on the worker's clock, None where it does not say.

    ``process`` is the key of the process that runs it, "" where that has not been measured yet.
    """

    id: str
    function: str
    items: int
    since: float | None
    pid: int
    process: str


@dataclass(frozen=True)
class WorkerRow:
    """One worker; ``answers``: it said what it runs."""

    beat: WorkerBeat
    running: tuple[Running, ...]
    count: int
    answers: bool
    idle: str

    @property
    def busy(self) -> int:
        """Slots that are taken: by what it runs, or as its last heartbeat says. Coroutines share an envelope."""
        if not self.answers or self.beat.pool == "aio_pool":
            return self.beat.busy
        return min(self.count, self.beat.processes)


@dataclass(frozen=True)
class Workers:
    """The page. ``refused`` says why nobody was asked what it runs."""

    rows: tuple[WorkerRow, ...]
    refused: str


class WorkersPage(Page):
    template = "graft_workers.html"
    tab = "graft-more"
    title = "Workers now"
    every = 5.0
    fresh = 4.0  # Each reading asks every worker.

    def read(self, question: Any) -> Workers:
        beats = worker_registry.workers(shared())
        active: Mapping[str, Any] = {}
        refused = ""
        try:
            active = (app().control.inspect(timeout=ASKED).active(safe=True) or {}) if beats else {}
        except UNREACHABLE as error:
            refused = f"nobody could be asked what it runs: {error}"
        processes = {(one.worker, one.pid): one.key for one in samples.latest(shared())}
        return Workers(tuple(row_of(beat, active.get(beat.name), processes) for beat in beats), refused)


def row_of(
    beat: WorkerBeat, active: Sequence[Mapping[str, Any]] | None, processes: Mapping[tuple[str, int], str]
) -> WorkerRow:
    """The row of one worker, from its heartbeat and its answer. Pure."""
    running = sorted(
        (_running(one, beat.name, processes) for one in active or ()), key=lambda one: one.since or time.time()
    )
    return WorkerRow(beat, tuple(running[:SHOWN]), len(running), active is not None, beat.consumes_nothing)


def _running(told: Mapping[str, Any], worker: str, processes: Mapping[tuple[str, int], str]) -> Running:
    name, arguments = str(told.get("name")), str(told.get("args") or "")
    function, items = labelled(arguments.strip("'\"")) or (name, 1)
    since, pid = told.get("time_start"), int(told.get("worker_pid") or 0)
    return Running(
        str(told.get("id")), function, items, float(since) if since else None, pid, processes.get((worker, pid), "")
    )


ADDRESSES: Final = addresses(r"/workers", WorkersPage, "graft-workers")
