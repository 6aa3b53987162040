"""The HTML page of ``html-report``, which needs no other file. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import Any, Final

from graft.scripts.commands.html_report import charts
from graft.tasks.dead_letters.query import Cause
from graft.tasks.health.history import Snapshot
from graft.tasks.health.verdicts import HealthReport
from graft.tasks.leaks import trend
from graft.tasks.leaks.findings import Finding
from graft.tasks.leaks.samples import Sample
from graft.tasks.leaks.theil_sen import theil_sen, thin
from graft.tasks.monitoring.function_stats import FunctionStats

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2430; --soft: #5b6472; --faint: #d9dde5; --good: #00694b;
  --bad: #b3261e; --warn: #8a5a00; --c0: #0072b2; --c1: #d98200; --c2: #009e73; --c3: #b35a8c; --c4: #d55e00;
  --c5: #3f9fd8; --c6: #7a7a7a; --c7: #9a8a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171d; --ink: #e6e9ef; --soft: #a3acba; --faint: #333a46;
  --good: #4cc38a; --bad: #ff8a80; --warn: #ffc35c; --c0: #56b4e9; --c1: #e69f00; --c2: #2fc79a; --c3: #e08fbd;
  --c4: #ff8c4a; --c5: #9ad2f5; --c6: #aaa; --c7: #f0e442; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 52rem; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--faint); }
p.sub, .none, figcaption { color: var(--soft); } figure { margin: 1rem 0 1.5rem; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: var(--soft); }
svg .grid { stroke: var(--faint); } svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .y { text-anchor: end; } svg .x, svg .unit { text-anchor: middle; } svg .bar { fill: var(--c0); }
svg .value { fill: var(--ink); }
.legend { list-style: none; margin: .2rem 0 0 3.5rem; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem;
  font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px; }
th, td { border-bottom: 1px solid var(--faint); padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } .ok, .clean, .reached { color: var(--good); }
.degraded, .suspect { color: var(--warn); } .failing, .leaking, .missed { color: var(--bad); font-weight: 600; }
"""


@dataclass(frozen=True)
class Found:
    """The content of the page."""

    name: str
    at: float
    health: HealthReport
    history: Sequence[Snapshot]
    processes: Sequence[Sequence[Sample]]
    leaks: Sequence[Finding]
    causes: Sequence[Cause]
    letters: int
    callables: dict[str, FunctionStats]
    bench: dict[str, Any] | None = None


def page(found: Found) -> str:
    """The whole page as HTML."""
    state = found.health.state
    when = datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>celery-graft, {escape(when)}</title><style>{STYLE}</style>",
        f"<h1>celery-graft: <span class={state}>{state}</span></h1>",
        f"<p class=sub>{escape(found.name)}, {escape(when)}{_span(found.history)}",
        "<h2>Health</h2>", _health(found.health),
        "<h2>Throughput</h2>", *_throughput(found.history), _callables(found.callables),
        "<h2>Queues</h2>", *_queues(found.history),
        "<h2>Memory</h2>", *_memory(found.processes, found.leaks),
        "<h2>Dead letters</h2>", *_letters(found.causes, found.letters),
    ]  # fmt: skip
    if found.bench is not None:
        parts += ["<h2>Benchmarks</h2>", *_bench(found.bench)]
    return "\n".join(parts) + "\n"


def _span(history: Sequence[Snapshot]) -> str:
    if len(history) < 2:
        return "; Beat has recorded no history yet"
    minutes = (history[-1].at - history[0].at) / 60
    return f"; history of {minutes / 60:.1f} hours" if minutes >= 90 else f"; history of {minutes:.0f} minutes"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table. Numbers are aligned to the right, cells of type ``Html`` are not escaped."""
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(head)}' for head in heads)}{body}</table>" if body else ""


class Html(str):
    """Markup, which is not escaped."""

    __slots__ = ()


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return f"<td>{value}"
    if isinstance(value, int | float):
        return f"<td class=n>{value:,}" if isinstance(value, int) else f"<td class=n>{value:,.4g}"
    return f"<td>{escape(str(value))}"


def _mark(verdict: str) -> Html:
    return Html(f"<span class={escape(verdict)}>{escape(verdict)}</span>")


def _health(report: HealthReport) -> str:
    bad = [verdict for verdict in report.verdicts if verdict.state != "ok"]
    fine = len(report.verdicts) - len(bad)
    rows = [(_mark(one.state), one.name, one.detail, one.remedy) for one in bad]
    return table(("state", "check", "found", "remedy"), rows) + f"<p class=sub>{fine} checks are ok."


def rates(history: Sequence[Snapshot], total: str) -> list[charts.Point]:
    """Growth per second between snapshots. A total that was reset starts again from its new value."""
    return [
        (after.at, max(0.0, getattr(after, total) - getattr(before, total)) / (after.at - before.at))
        for before, after in pairwise(history)
        if after.at > before.at
    ]


def _throughput(history: Sequence[Snapshot]) -> list[str]:
    busy: dict[str, list[charts.Point]] = {}
    for each in history:
        # What was recorded before lanes were told apart has one figure for all.
        for lane, (running, slots) in (each.lanes or {"all": [each.running, each.slots]}).items():
            if slots:
                busy.setdefault(lane, []).append((each.at, running / slots))
    return [
        charts.lines(
            "Items run", "items per second", {"items": rates(history, "items"), "errors": rates(history, "errors")}
        ),
        charts.lines("Slots in use", "share of the lane's slots", busy),
        charts.lines("Demand", "messages per slot", {"demand": [(each.at, each.per_slot) for each in history]}),
    ]


def _callables(known: dict[str, FunctionStats]) -> str:
    ranked = sorted(known.items(), key=lambda each: -each[1].seconds)[:20]
    rows = [
        (name, one.items, one.seconds, 1000 * one.seconds / one.items if one.items else 0.0, one.errors, one.retries)
        for name, one in ranked
    ]
    return table(("callable", "items", "busy s", "ms per item", "errors", "retried"), rows)


def _queues(history: Sequence[Snapshot]) -> list[str]:
    names = sorted({name for each in history for name in each.queues})
    series = {
        part: {name: [(each.at, each.queues[name][part]) for each in history if name in each.queues] for name in names}
        for part in (0, 1)
    }
    return [
        charts.lines("Waiting, all priorities", "messages", series[0]),
        charts.lines("Age of the oldest message", "seconds", series[1]),
    ]


def _memory(processes: Sequence[Sequence[Sample]], leaks: Sequence[Finding]) -> list[str]:
    largest = sorted(processes, key=lambda series: -series[-1].memory)[:8]
    drawn = {series[-1].process: [(sample.at, sample.memory) for sample in series] for series in largest}
    rows = []
    for series in sorted(processes, key=lambda series: series[-1].process):
        times, values = thin([sample.at for sample in series], [sample.memory for sample in series])
        slope = theil_sen(times, values)
        verdict = trend.trend([s.at for s in series], [s.memory for s in series], trend.PROCESS[0]).verdict
        sure = (
            f"{slope.low * 3600:.2f} … {slope.high * 3600:.2f}" if slope.points >= trend.ENOUGH else "too few samples"
        )
        rows.append((series[-1].process, series[-1].memory, slope.per_second * 3600, sure, _mark(verdict)))
    others = [(_mark(one.verdict), one.subject, one.measure, one.detail, one.remedy) for one in leaks]
    return [
        charts.lines("Proportional memory of processes", "MiB", drawn),
        table(("process", "MiB", "MiB per hour", "with 99 % confidence", "verdict"), rows),
        table(("verdict", "what", "measure", "evidence", "remedy"), others),
    ]


def _letters(found: Sequence[Cause], total: int) -> list[str]:
    chart = charts.bars("By cause", "dead letters", {f"{one.function}: {one.error}": one.letters for one in found})
    moment = "%Y-%m-%d %H:%M"
    rows = [
        (one.letters, one.items, one.reason, one.function, one.error.partition("\n")[0][:200], one.fingerprint,
         datetime.fromtimestamp(one.last, UTC).strftime(moment))
        for one in found
    ]  # fmt: skip
    return [
        chart,
        table(("count", "items", "reason", "callable", "error", "fingerprint", "last, UTC"), rows),
        f"<p class=sub>{total:,} dead letters in all, those of the reason failed left out.",
    ]


def _bench(run: dict[str, Any]) -> list[str]:
    rows = [
        (
            one["promise"],
            f"{one['sense']} {one['limit']:,g} {one['unit']}",
            "not measured" if one["measured"] is None else one["measured"],
            str(one["verdict"]),
        )
        for one in run.get("targets", ())
    ]  # fmt: skip
    parts = [table(("promise", "limit", "measured", "verdict"), rows)]
    workloads: dict[str, dict[str, float]] = {}
    for one in run.get("results", ()):
        if one.get("seconds"):
            # Scaled to all items: slow contenders ran fewer.
            seconds = one["scaled_seconds"]["median"]
            workloads.setdefault(f"{one['workload']}: {one['title']}", {})[one["contender_title"]] = seconds
    return parts + [charts.bars(title, "seconds for all items, median", found) for title, found in workloads.items()]
