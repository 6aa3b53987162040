"""A run as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.machine import Machine
from graft.scripts.bench.measuring import Series, quantile
from graft.scripts.bench.run import Outcome
from graft.scripts.bench.targets import MIB, TargetVerdict, examined, percent_busy, verdicts
from graft.scripts.console import duration

SCALED = "≈: ran fewer items, the time is scaled to all of them"
KEPT_TIMES = 2_000  # Of each series of single calls, in the JSON file.


def show(outcome: Outcome, machine: Machine, console: Console) -> None:
    """Print the machine, one table for each workload, and what was promised of them, if anything was."""
    for line in machine.lines:
        console.print(line, markup=False)
    for _, group in groupby(outcome.series, key=lambda series: series.workload.name):
        console.print()
        console.print(table_of(list(group), outcome))
    if promised := examined(outcome):
        console.print()
        console.print(targets_table(promised))
    for name, why in outcome.absent.items():
        console.print(f"{name} did not take part: {why}", markup=False)


def table_of(group: list[Series], outcome: Outcome) -> Table:
    """One workload, the quickest first, with the columns that it has something for."""
    workload = group[0].workload
    columns, rows = figures(group, outcome)
    table = Table(title=f"{workload.name}: {workload.subject}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows:
        table.add_row(*row)
    if any(series.repetitions and series.is_scaled and series.has_whole for series in group):
        table.caption = SCALED
        table.caption_justify = "left"
    return table


def figures(group: list[Series], outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """The heads of a table, and its rows; columns that nobody fills are left out."""
    workload = group[0].workload
    ours = outcome.find(workload.name, "graft") or outcome.find(workload.name, "graft-io")
    ours = ours or outcome.find(workload.name, "graft-programs")
    records = []
    for series in sorted(group, key=lambda each: each.figure if each.repetitions else float("inf")):
        record = {"contender": CONTENDERS[series.contender].title}
        if series.failure or not series.repetitions:
            record["median"] = "failed" if series.failure else "not run"
        else:
            record |= cells(series, ours, outcome.plan.cores)
        records.append(record)
    heads = list(dict.fromkeys(head for record in records for head, text in record.items() if text))
    return heads, [[record.get(head, "") for head in heads] for record in records]


def cells(series: Series, ours: Series | None, cores: int) -> dict[str, str]:
    """The cells of a row after its name, by column."""
    if series.has_whole:
        spread = series.seconds
        mark = "≈ " if series.is_scaled else ""
        row = {"median": mark + duration(spread.median), "least": duration(spread.least), "p90": duration(spread.p90)}
    else:
        row = {"median": duration(series.figure), "least": duration(min(series.times)), "p99": duration(series.tail)}
    row["against us"] = f"{series.figure / ours.figure:.3g} ×" if ours else ""
    row["items/s"] = f"{series.rate:,.0f}" if series.has_whole else ""
    has_workers = bool(series.memory.get("after"))  # Pools of processes work in children of their client.
    if series.workload.shape != "start":
        row["µs/item client"] = f"{series.cpu('client') * 1e6:.1f}"
    row["µs/item workers"] = f"{series.cpu('workers') * 1e6:.1f}" if has_workers else ""
    busy, idle = percent_busy(series, cores), series.median("idle_tail")
    row["efficiency"] = "" if busy is None else f"{busy:.1f} %"
    row["last idle"] = "" if idle is None else f"{100 * idle:.1f} %"
    cpu, idle_memory = series.median("cpu"), series.median("idle_memory")
    row["cpu"] = "" if cpu is None else duration(cpu)
    row["PSS MiB"] = f"{series.memory['after'] / MIB:.0f}" if has_workers else ""
    row["idle MiB"] = "" if idle_memory is None else f"{idle_memory / MIB:.0f}"
    return row


def targets_table(promised: Sequence[TargetVerdict]) -> Table:
    """Promises, and whether they are kept."""
    table = Table(title="what is promised", title_justify="left")
    table.add_column("figure")
    table.add_column("promised", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("")
    for verdict in promised:
        target = verdict.target
        style = "green" if verdict.is_reached else "red"
        limit = f"{target.sense} {target.limit:,g} {target.unit}"
        table.add_row(target.promise, limit, verdict.measured, f"[{style}]{verdict.words}[/]")
    return table


def as_markdown(outcome: Outcome, machine: Machine) -> str:
    """The tables of ``show`` as Markdown."""
    parts = [*machine.lines, ""]
    promised = [
        [target.promise, f"{target.sense} {target.limit:,g} {target.unit}", verdict.measured, verdict.words]
        for verdict in examined(outcome)
        for target in (verdict.target,)
    ]
    if promised:
        parts += [*_markdown_table(["figure", "promised", "measured", ""], promised), ""]
    for _, each in groupby(outcome.series, key=lambda series: series.workload.name):
        group = list(each)
        workload = group[0].workload
        parts += [f"**{workload.name}**: {workload.subject}", ""]
        parts += [*_markdown_table(*figures(group, outcome)), ""]
    return "\n".join([*parts, SCALED, ""])


def _markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|".join("---" if index == 0 else "--:" for index in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]


def as_json(outcome: Outcome, machine: Machine) -> str:
    """The whole run; times of single calls are thinned out evenly."""
    return json.dumps(
        {
            "format": 1,
            "machine": machine.facts,
            "repeat": outcome.plan.repeat,
            "absent": outcome.absent,
            "results": [_series(series, outcome.plan.cores) for series in outcome.series],
            "targets": [
                {
                    "promise": verdict.target.promise,
                    "sense": verdict.target.sense,
                    "limit": verdict.target.limit,
                    "unit": verdict.target.unit,
                    "measured": verdict.found,
                    "verdict": verdict.words,
                }
                for verdict in verdicts(outcome)
            ],
        },
        indent=1,
    )


def _series(series: Series, cores: int) -> dict[str, Any]:
    workload = series.workload
    found: dict[str, Any] = {
        "workload": workload.name,
        "group": workload.group,
        "title": workload.subject,
        "items": workload.items.count,
        "contender": series.contender,
        "contender_title": CONTENDERS[series.contender].title,
        "failure": series.failure,
    }
    if series.failure or not series.repetitions:
        return found
    found |= {
        "items_run": series.items,
        "seconds": [repetition.answer.seconds for repetition in series.repetitions],
        "scaled_seconds": vars(series.seconds),
        "figure": series.figure,
        "rate": series.rate,
        "cpu_per_item": {part: series.cpu(part) for part in ("client", "workers", "redis")},
        "memory": series.memory,
        "history": series.history,
        "extra": {
            name: series.median(name) for name in series.repetitions[0].answer.extra if name != "began"
        },
        "efficiency_percent": percent_busy(series, cores),
    }  # fmt: skip
    if series.times:
        found["times"] = thinned(series.times, KEPT_TIMES)
        found["tail"] = series.tail
    return found


def thinned(times: list[float], count: int) -> list[float]:
    """*count* quantiles at most, the least and the greatest among them."""
    if len(times) <= count:
        return sorted(times)
    return [quantile(times, index / (count - 1)) for index in range(count)]
