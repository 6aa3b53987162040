"""The run as one page that needs nothing else: tables, and plots inside it, for light and for dark."""

from __future__ import annotations

import base64
import io
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.machine import Machine
from graft.scripts.bench.plots import THEMES, draw
from graft.scripts.bench.report import SCALED, figures
from graft.scripts.bench.run import Outcome
from graft.scripts.bench.targets import examined

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2430; --faint: #d9dde5; --good: #00694b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171d; --ink: #e6e9ef; --faint: #333a46; --good: #4cc38a; --bad: #ff8a80; }
}
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
       max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0 0 2rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--faint); padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
img { max-width: 100%; height: auto; }
"""
OURS: Final = {CONTENDERS[name].title for name in ("graft", "graft-io")}


def page(outcome: Outcome, machine: Machine) -> str:
    """HTML with everything inside."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
             f"<title>celery-graft bench, {escape(machine.at)}</title><style>{STYLE}</style>",
             "<h1>celery-graft bench</h1>", *(f"<p>{escape(line)}</p>" for line in machine.lines),
             *_targets(outcome), "<h2>Plots</h2>", *_pictures(outcome),
             "<h2>Figures</h2>"]  # fmt: skip
    for _, group in groupby(outcome.series, key=lambda series: series.workload.name):
        series = list(group)
        workload = series[0].workload
        heads, rows = figures(series, outcome)
        head = "".join(f"<th>{escape(name)}" for name in heads)
        body = "".join(_row(row) for row in rows)
        title = escape(f"{workload.name}: {workload.subject}")
        parts.append(f"<h3>{title}</h3><table><tr>{head}{body}</table>")
    parts.append(f"<p>{escape(SCALED)}</p></html>")
    return "\n".join(parts)


def _row(row: list[str]) -> str:
    if row[1] in ("failed", "not run"):
        return f"<tr><td>{escape(row[0])}<td class=bad colspan={len(row) - 1}>{row[1]}"
    is_ours = row[0] in OURS
    return f"<tr{' class=ours' * is_ours}>" + "".join(f"<td>{escape(cell)}" for cell in row)


def write_plots(outcome: Outcome, folder: Path) -> list[Path]:
    """One PNG per plot and theme."""
    written = []
    for name, theme, figure in draw(outcome):
        path = folder / f"{name}-{theme}.png"
        figure.savefig(path)
        written.append(path)
    return written


def _pictures(outcome: Outcome) -> list[str]:
    encoded: dict[str, dict[str, str]] = {}
    for name, theme, figure in draw(outcome):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        text = base64.b64encode(picture.getvalue()).decode()
        encoded.setdefault(name, {})[theme] = f"data:image/png;base64,{text}"
    assert set(THEMES) == {"light", "dark"}
    return [
        f"<p><picture><source media='(prefers-color-scheme: dark)' srcset='{themes['dark']}'>"
        f"<img src='{themes['light']}' alt='{escape(name)}'></picture></p>"
        for name, themes in encoded.items()
    ]


def _targets(outcome: Outcome) -> list[str]:
    rows = []
    for verdict in examined(outcome):
        target = verdict.target
        look = "good" if verdict.is_reached else "bad"
        rows.append(
            f"<tr><td>{escape(target.promise)}<td>{target.sense} {target.limit:,g} {escape(target.unit)}"
            f"<td>{escape(verdict.measured)}<td class={look}>{escape(verdict.words)}"
        )
    if not rows:
        return []
    head = "<tr><th>figure<th>promised<th>measured<th>"
    return ["<h2>What is promised</h2>", f"<table>{head}{''.join(rows)}</table>"]
