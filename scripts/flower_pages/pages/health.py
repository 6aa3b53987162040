"""Every check with its value, limit, remedy and past; what grows; and every process."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from graft.config.redis_client import shared
from graft.scripts.commands.health import report as health_command
from graft.scripts.flower_pages.frame import Page, Paged, addresses
from graft.scripts.flower_pages.moments import moments
from graft.scripts.flower_pages.series import Series, split
from graft.tasks.health import report_store
from graft.tasks.health.history import Snapshot
from graft.tasks.health.verdicts import ORDER, Change, HealthReport, HealthState, Verdict
from graft.tasks.leaks import findings, samples
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.samples import Sample

PLOTTED: Final = 60  # Processes, those with findings first.
CHECKS: Final = 100  # On one page.


@dataclass(frozen=True)
class PastChange:
    """A check that changed its state."""

    at: float
    change: Change


@dataclass(frozen=True)
class ProcessRow:
    """One process: its last sample, and its memory over time in MiB."""

    key: str
    last: Sample
    memory: tuple[float, ...]
    per_hour: float | None


@dataclass(frozen=True)
class Health:
    """The page; of many checks some, the worst first. ``plots`` is the series of each finding, in its order.

    ``past`` is the last hour and day of each verdict's value, in their order; empty where the history does not have it.
    """

    report: HealthReport
    state: HealthState
    paged: Paged
    past: tuple[Series, ...]
    changes: tuple[PastChange, ...]
    findings: tuple[Finding, ...]
    plots: tuple[tuple[float, ...], ...]
    processes: tuple[ProcessRow, ...]
    process_count: int


# The page that shows more of what a check found; for those of one queue, that of the queue.
SHOWN_ON: Final = {
    "dead letters": "graft-letters", "errors": "graft-calls", "retries": "graft-calls", "workers": "graft-workers",
    "worker": "graft-workers", "beat": "graft-schedule",
}  # fmt: skip
OF_QUEUES: Final = ("depth", "age", "round trip")


class ChecksPage(Page):
    """A page that shows checks."""

    def address_of(self, verdict: Verdict) -> str:
        """The address of the page that shows more of what a check found."""
        if verdict.check in OF_QUEUES and verdict.subject:
            return self.address("graft-queue", verdict.subject)
        if verdict.check in SHOWN_ON:
            return self.address(SHOWN_ON[verdict.check])
        return f"{self.address('graft-health')}{'#graft-h-leaks' if verdict.check == 'leak' else ''}"


class HealthPage(ChecksPage):
    template = "graft_health.html"
    tab = "graft-health"
    title = "Health and leaks"
    every = 5.0

    def question(self, *path: str) -> Hashable:
        return self.page_asked()

    def read(self, question: int) -> Health:
        client = shared()
        report = health_command.current()
        found = findings.read(client)
        latest = samples.latest(client)
        leaking = {one.process for one in found}
        latest.sort(key=lambda one: (one.key not in leaking, one.worker, one.role, one.pid))
        shown = latest[:PLOTTED]
        series = samples.series([one.key for one in shown], client)
        rows = [process_row(series.get(one.key, [one])) for one in shown]
        changes = tuple(PastChange(at, change) for at, change in report_store.past_changes(client, 50))
        verdicts = sorted(report.verdicts, key=lambda one: -ORDER.index(one.state))
        paged = Paged(question, len(verdicts), CHECKS)
        some = tuple(verdicts[paged.first : paged.first + paged.rows])
        past = pasts(some, moments().past(), report.at)
        return Health(
            replace(report, verdicts=some), report.state, paged, past, changes, tuple(found), plots(found, series),
            tuple(rows), len(latest),
        )  # fmt: skip


def pasts(verdicts: Sequence[Verdict], history: Sequence[Snapshot], now: float) -> tuple[Series, ...]:
    """The last hour and day of the value of each of *verdicts*; empty where the history does not have it. Pure."""
    return tuple(
        split(
            [(one.at, value) for one in history if (value := one.value_of(each.check, each.subject)) is not None], now
        )
        for each in verdicts
    )


def process_row(series: Sequence[Sample]) -> ProcessRow:
    """The row of one process. Pure; the slope is a plain line's, the page of the process has the one that is judged."""
    memory = tuple(round(one.memory, 1) for one in series)
    hours = (series[-1].at - series[0].at) / 3600
    slope = (memory[-1] - memory[0]) / hours if hours > 0.05 else None
    return ProcessRow(series[-1].key, series[-1], memory, slope)


def plots(found: Sequence[Finding], series: dict[str, list[Sample]]) -> tuple[tuple[float, ...], ...]:
    """The measurements behind each finding; empty for those of Redis."""
    return tuple(
        tuple(float(getattr(one, finding.measure, 0.0)) for one in series.get(finding.process, ())) for finding in found
    )


ADDRESSES: Final = addresses(r"/health", HealthPage, "graft-health")
