"""Every check with its value, limit, remedy and past, and every process with its growth; a trace of one on request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.scripts.commands.health import report as health_command
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.moments import moments
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.tasks.health import report_store
from graft.tasks.health.history import Snapshot
from graft.tasks.health.verdicts import ORDER, Change, HealthReport, Verdict
from graft.tasks.leaks import findings, samples, thread_stacks, tracemalloc_session
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.samples import Sample
from graft.tasks.leaks.thread_stacks import SHOWN, Stacks
from graft.tasks.leaks.tracemalloc_session import TRACED

PLOTTED: Final = 60  # Processes whose growth is drawn, those with findings first; and checks whose past is.
HOUR: Final = 3600.0  # Seconds.
FIGURES: Final = {"depth": 0, "age": 1}  # Where a snapshot of the history has the value of a check of one queue.
NONE: Final = (0.0, 0.0)
TRACES: Final = 60.0  # Seconds for which a process traces, unless the form says otherwise.


@dataclass(frozen=True)
class PastChange:
    """A check that changed its state."""

    at: float
    change: Change


@dataclass(frozen=True)
class ProcessRow:
    """One process: its last sample, its memory over time in MiB; where it allocated and where it was, if asked."""

    key: str
    last: Sample
    memory: tuple[float, ...]
    per_hour: float | None
    trace: tuple[dict[str, Any], ...]
    stacks: Stacks | None


@dataclass(frozen=True)
class Health:
    """The page. ``plots`` is the series of each finding, in its order.

    ``past`` is the last hour of each verdict's value, in their order; empty for those that the history does not have.
    """

    report: HealthReport
    past: tuple[tuple[float, ...], ...]
    changes: tuple[PastChange, ...]
    findings: tuple[Finding, ...]
    plots: tuple[tuple[float, ...], ...]
    processes: tuple[ProcessRow, ...]
    process_count: int


class HealthPage(Page):
    template = "graft_health.html"
    tab = "graft-health"
    title = "Health and leaks"
    every = 5.0

    def read(self, question: Any) -> Health:
        client = shared()
        report = health_command.current()
        found = findings.read(client)
        latest = samples.latest(client)
        leaking = {one.process for one in found}
        latest.sort(key=lambda one: (one.key not in leaking, one.worker, one.role, one.pid))
        shown = latest[:PLOTTED]
        series = samples.series([one.key for one in shown], client)
        told = client.mget([name + one.key for name in (TRACED, SHOWN) for one in shown]) if shown else []
        rows = [
            process_row(series.get(one.key, [one]), json.loads(trace) if trace else [], _stacks(stacks))
            for one, trace, stacks in zip(shown, told[: len(shown)], told[len(shown) :], strict=True)
        ]
        changes = tuple(PastChange(at, change) for at, change in report_store.past_changes(client, 50))
        verdicts = tuple(sorted(report.verdicts, key=lambda one: -ORDER.index(one.state)))
        ordered = replace(report, verdicts=verdicts)
        past = pasts(verdicts, moments().past(), report.at)
        return Health(ordered, past, changes, tuple(found), plots(found, series), tuple(rows), len(latest))


def pasts(verdicts: Sequence[Verdict], history: Sequence[Snapshot], now: float) -> tuple[tuple[float, ...], ...]:
    """The last hour of the value of each of *verdicts*, of the first sixty that *history* has. Pure."""
    recent = [one.queues for one in history if now - one.at <= HOUR]
    found: list[tuple[float, ...]] = []
    drawn = 0
    for verdict in verdicts:
        figure = FIGURES.get(verdict.check)
        has_past = figure is not None and drawn < PLOTTED and any(verdict.subject in queues for queues in recent)
        drawn += has_past
        found.append(tuple(queues.get(verdict.subject, NONE)[figure or 0] for queues in recent) if has_past else ())
    return tuple(found)


def _stacks(text: bytes | None) -> Stacks | None:
    return Stacks(**json.loads(text)) if text else None


def process_row(series: Sequence[Sample], trace: Sequence[dict[str, Any]], stacks: Stacks | None) -> ProcessRow:
    """The row of one process. Pure; the slope is a plain line's, a finding has the one that is judged."""
    memory = tuple(round(one.memory, 1) for one in series)
    hours = (series[-1].at - series[0].at) / 3600
    slope = (memory[-1] - memory[0]) / hours if hours > 0.05 else None
    return ProcessRow(series[-1].key, series[-1], memory, slope, tuple(trace[:10]), stacks)


def plots(found: Sequence[Finding], series: dict[str, list[Sample]]) -> tuple[tuple[float, ...], ...]:
    """The measurements behind each finding; empty for those of Redis."""
    return tuple(
        tuple(float(getattr(one, finding.measure, 0.0)) for one in series.get(finding.process, ())) for finding in found
    )


def _plan_trace(given: Given) -> Plan:
    process = _process(given)
    return Plan(
        f"Trace the allocations of {process.process}",
        f"For {TRACES:g} s it notes where it allocates memory, and is about half as fast. The lines are shown here.",
        "Trace it",
    )  # fmt: skip


def _trace(given: Given) -> str:
    process = _process(given)
    tracemalloc_session.request(process.key, TRACES, shared())
    return (
        f"{process.process} begins to trace when it is next measured, and shows where it allocates after {TRACES:g} s"
    )


def _plan_stack(given: Given) -> Plan:
    process = _process(given)
    return Plan(
        f"Show where {process.process} is",
        f"It notes the stack of each of its threads when it is next measured, within {settings().leaks_every:g} s, and "
        "goes on. The stacks are shown here.",
        "Show it",
    )  # fmt: skip


def _stack(given: Given) -> str:
    process = _process(given)
    thread_stacks.request(process.key, shared())
    return f"asked {process.process} where it is; it answers within {settings().leaks_every:g} s"


def _process(given: Given) -> Sample:
    for one in samples.latest(shared()):
        if one.key == given.get("process"):
            return one
    raise LookupError(f"no process {given.get('process', '')!r} is measured now")


ACTIONS: Final = {"trace": Action(_plan_trace, _trace), "stack": Action(_plan_stack, _stack)}
ADDRESSES: Final = addresses(r"/health", HealthPage, "graft-health")
