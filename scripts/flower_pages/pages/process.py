"""One worker process: how its figures went, with slope and verdict; on request its stacks and what it allocates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.scripts.flower_pages.frame import Page, addresses
from graft.scripts.flower_pages.plans import Action, Given, Plan
from graft.tasks.leaks import findings, samples, thread_stacks, tracemalloc_session
from graft.tasks.leaks.correlation import RanMeanwhile, ran_meanwhile
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.samples import Sample
from graft.tasks.leaks.thread_stacks import Stacks
from graft.tasks.leaks.trend import PROCESS, Grade, Measure, trend

TRACES: Final = 60.0  # Seconds for which a process traces.
SURE: Final = 10  # Samples; a slope through fewer is not shown.
CALLABLES: Final = 10


@dataclass(frozen=True)
class Growth:
    """How one figure of a process went: ``points`` are (time, value), the oldest first.

    ``per_hour`` is its slope, between ``low`` and ``high`` with 99 % confidence, None before there are enough samples.
    ``names`` are the callables that ran while it grew, if it grows beyond noise.
    """

    measure: str
    unit: str
    points: tuple[tuple[float, float], ...]
    verdict: Grade
    per_hour: float | None
    low: float
    high: float
    names: tuple[RanMeanwhile, ...]


@dataclass(frozen=True)
class ProcessLook:
    """One process. ``ran`` are the items that it has run since its oldest sample, by callable, the most first."""

    key: str
    last: Sample
    growths: tuple[Growth, ...]
    findings: tuple[Finding, ...]
    ran: tuple[tuple[str, int], ...]
    trace: tuple[dict[str, Any], ...]
    stacks: Stacks | None


class ProcessPage(Page):
    template = "graft_process.html"
    tab = "graft-health"
    title = "Process"
    every = 3.0

    def read(self, question: tuple[str]) -> ProcessLook:
        client = shared()
        (key,) = question
        series = samples.series([key], client).get(key)
        if not series:
            raise LookupError(f"no process {key} is measured: it has ended, or Beat does not run")
        ran: Counter[str] = Counter()
        for one in series:
            ran.update(one.ran)
        found = tuple(one for one in findings.read(client) if one.process == key)
        trace = tracemalloc_session.result(key, client) or ()
        growths = tuple(growth(series, measure) for measure in PROCESS)
        stacks = thread_stacks.result(key, client)
        return ProcessLook(key, series[-1], growths, found, tuple(ran.most_common(CALLABLES)), tuple(trace), stacks)


def growth(series: Sequence[Sample], measure: Measure) -> Growth:
    """How *measure* went in *series*, as the check for leaks judges it. Pure."""
    times = [one.at for one in series]
    values = [float(getattr(one, measure.name)) for one in series]
    how = trend(times, values, measure)
    names: list[RanMeanwhile] = []
    if how.verdict != "clean":
        steps = [(after - before, one.ran) for before, after, one in zip(values, values[1:], series[1:], strict=False)]
        names = ran_meanwhile(steps)
    hourly = [each * 3600 for each in (how.slope.per_second, how.slope.low, how.slope.high)]
    per_hour = hourly[0] if len(times) >= SURE else None
    points = tuple(zip(times, values, strict=True))
    return Growth(measure.name, measure.unit, points, how.verdict, per_hour, hourly[1], hourly[2], tuple(names))


# ---- what the buttons do ----


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
ADDRESSES: Final = addresses(r"/process/(.+)", ProcessPage, "graft-process")
