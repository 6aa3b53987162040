"""Pictures for the pages, as HTML: sparklines, plots with a slope, timelines. Pure; their texts are escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from tornado.escape import xhtml_escape

from graft.config.words import several
from graft.scripts.commands.html_report.charts import number, thin
from graft.scripts.console import duration
from graft.scripts.flower_pages.wording import moment

WIDTH, HEIGHT = 240, 40  # Of a sparkline, in its own units.
TALL: Final = 120  # Of a plot.
ROW: Final = 18  # Of a timeline.
NEAR: Final = 2.0  # A limit above so many times the highest value is not drawn: the line would lie on the ground.


def spark(values: Sequence[float], label: str, limit: float | None = None) -> str:
    """A small line of *values* over time, told to those who cannot see it as its least, most and last."""
    if len(values) < 2:
        return '<span class="graft-spark-none">not enough recorded yet</span>'
    points = thin(list(enumerate(values)))
    most = max(values)
    drawn = limit is not None and 0 < limit <= NEAR * most
    top = max(most, limit or 0.0) if drawn else most
    told = f"{label}: from {min(values):,.3g} to {most:,.3g}, now {values[-1]:,.3g}"
    line = ""
    if drawn:
        told += f", limit {limit:,.3g}"
        at = _height(limit or 0.0, 0.0, top, HEIGHT)
        line = f'<line class="graft-limit" x1="0" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"></line>'
    told = xhtml_escape(told)
    return (
        f'<svg class="graft-spark" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}"><title>{told}</title>{line}'
        f'<polyline points="{_path(points, 0.0, top, HEIGHT)}"></polyline></svg>'
    )


def plot(points: Sequence[tuple[float, float]], label: str, per_second: float | None = None) -> str:
    """A line from its lowest to its highest value, both said, over times that are said; dashed its slope, if given."""
    if len(points) < 2:
        return '<p class="graft-dim">Not enough was recorded yet.</p>'
    low, high = min(value for _, value in points), max(value for _, value in points)
    (first, _), (last, latest) = points[0], points[-1]
    told = xhtml_escape(f"{label}: from {low:,.4g} to {high:,.4g}, now {latest:,.4g}")
    line = ""
    if per_second is not None:
        base = median(value - per_second * (at - first) for at, value in points)
        ends = [_height(base + per_second * (at - first), low, high, TALL) for at in (first, last)]
        line = f'<line class="graft-slope" x1="0" x2="{WIDTH}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"></line>'
    return (
        f'<div class="graft-plot"><div class="graft-plot-y"><span>{number(high)}</span><span>{number(low)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {TALL}" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<title>{told}</title>{line}<polyline points="{_path(thin(points), low, high, TALL)}"></polyline></svg>'
        f'<div class="graft-plot-x"><span>{moment(first)}</span><span>{moment(last)}</span></div></div>'
    )


def _path(points: Sequence[tuple[float, float]], low: float, high: float, tall: int) -> str:
    first, last = points[0][0], points[-1][0]
    return " ".join(
        f"{(at - first) / ((last - first) or 1) * WIDTH:.1f},{_height(value, low, high, tall):.1f}"
        for at, value in points
    )


def _height(value: float, low: float, high: float, tall: int) -> float:
    return tall - 3 - (value - low) / ((high - low) or 1) * (tall - 6)


def timeline(runs: Sequence[Any]) -> str:
    """A bar for each of *runs* (attempts) from its beginning to its end, one row for each worker."""
    first, last = min(run.began for run in runs), max(run.ended for run in runs)
    span = max(last - first, 1e-3)
    workers = list(dict.fromkeys(run.worker for run in runs))
    bars = "".join(_bar(run, first, span, workers.index(run.worker)) for run in runs)
    told = xhtml_escape(f"{several(len(runs), 'run')} on {several(len(workers), 'worker')} within {duration(span)}")
    return (
        f'<svg class="graft-timeline" viewBox="0 0 1002 {len(workers) * ROW}" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}">{bars}</svg><p class="graft-dim">{told}</p>'
    )


def _bar(run: Any, first: float, span: float, row: int) -> str:
    look = "graft-run graft-run-failed" if run.error else "graft-run"
    told = xhtml_escape(f"{run.worker}: {run.outcome} after {duration(run.seconds)}")
    left, width = (run.began - first) / span * 1000, max(2.0, run.seconds / span * 1000)
    return (
        f'<rect class="{look}" x="{left:.1f}" y="{row * ROW + 2}" width="{width:.1f}" height="{ROW - 6}">'
        f"<title>{told}</title></rect>"
    )
