"""Charts as SVG text: lines over time, and bars. Their colours come from the page's CSS."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 40
POINTS: Final = 300  # More cannot be seen at this width.
COLOURS: Final = 8  # Custom properties --c0 … --c7.

Point = tuple[float, float]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About *wanted* round numbers that span *low* to *high*."""
    raw = (high - low) / wanted
    if raw < sys.float_info.min:  # Nothing between them, or less than a float can divide.
        high, raw = low + 1.0, 1.0 / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * magnitude for unit in (1, 2, 2.5, 5, 10) if unit * magnitude >= raw * 0.999)
    first = math.floor(low / step)
    return [step * at for at in range(first, math.ceil(high / step - 1e-9) + 1)]


def number(value: float) -> str:
    """A figure as short as it can be read: 1.5k, 0.25, 12M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}" if value else "0"


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points; of each stretch the one that stands out most, so that a peak is not lost."""
    if len(points) <= POINTS:
        return list(points)
    stretches = [points[len(points) * at // POINTS : len(points) * (at + 1) // POINTS] for at in range(POINTS)]
    return [max(stretch, key=lambda point: point[1]) for stretch in stretches]


def lines(title: str, unit: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Lines over time, x in seconds since the epoch; the legend says each line's last value."""
    drawn = {name: thin(points) for name, points in series.items() if points}
    if not drawn or all(len(points) < 2 for points in drawn.values()):
        return (
            f"<figure><figcaption>{escape(title)}</figcaption><p class=none>Not enough was recorded yet.</p></figure>"
        )
    times = [at for points in drawn.values() for at, _ in points]
    start, end = min(times), max(*times, min(times) + 1)
    marks = ticks(0.0, max(value for points in drawn.values() for _, value in points))
    top = marks[-1] or 1.0

    def x(at: float) -> float:
        return LEFT + (at - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - max(value, 0.0) / top * (HEIGHT - TOP - BOTTOM)

    parts = [_frame(title)]
    for mark in marks:
        parts.append(f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(mark):.1f} y2={y(mark):.1f} />")
        parts.append(f"<text class=y x={LEFT - 6} y={y(mark) + 4:.1f}>{number(mark)}</text>")
    for at, label in _times(start, end):
        parts.append(f"<text class=x x={min(x(at), WIDTH - 34):.1f} y={HEIGHT - BOTTOM + 17}>{label}</text>")
    parts.append(f'<text class=unit transform="translate(14 {HEIGHT / 2 - 12:.0f}) rotate(-90)">{escape(unit)}</text>')
    parts.append(f"<text class=unit x={(LEFT + WIDTH - RIGHT) / 2:.0f} y={HEIGHT - 6}>time, UTC</text>")
    for at, (_, points) in enumerate(drawn.items()):
        path = " ".join(f"{x(when):.1f},{y(value):.1f}" for when, value in points)
        parts.append(f'<polyline class=line style="stroke:var(--c{at % COLOURS})" points="{path}" />')
    parts.append("</svg>")
    legend = "".join(
        f'<li><i style="background:var(--c{at % COLOURS})"></i>{escape(name)} <b>{number(points[-1][1])}</b>'
        for at, (name, points) in enumerate(drawn.items())
    )
    return _figure(title, "".join(parts), f"<ul class=legend>{legend}</ul>")


def bars(title: str, unit: str, values: Mapping[str, float]) -> str:
    """Bars that lie, the longest first."""
    if not values:
        return f"<figure><figcaption>{escape(title)}</figcaption><p class=none>There are none.</p></figure>"
    ranked = sorted(values.items(), key=lambda each: -each[1])[:12]
    marks = ticks(0.0, max(values.values()))
    if all(float(value).is_integer() for value in values.values()):  # Nobody counts in halves.
        marks = [mark for mark in marks if mark.is_integer()]
    height, label = 26 * len(ranked) + 44, 300
    scale = (WIDTH - label - 60) / (marks[-1] or 1.0)
    parts = [_frame(title, height)]
    for mark in marks:
        parts.append(
            f"<line class=grid x1={label + mark * scale:.1f} x2={label + mark * scale:.1f} y1=4 y2={height - 34} />"
        )
        parts.append(f"<text class=x x={label + mark * scale:.1f} y={height - 20}>{number(mark)}</text>")
    for at, (name, value) in enumerate(ranked):
        shown = name if len(name) <= 44 else f"{name[:43]}…"
        row = 26 * at + 6
        parts.append(f"<g><title>{escape(name)}</title>")
        parts.append(f"<text class=y x={label - 8} y={row + 14}>{escape(shown)}</text>")
        parts.append(f"<rect class=bar x={label} y={row} width={max(value * scale, 1):.1f} height=18 />")
        parts.append(f"<text class=value x={label + value * scale + 6:.1f} y={row + 14}>{number(value)}</text></g>")
    parts.append(f"<text class=unit x={(label + WIDTH) / 2:.0f} y={height - 4}>{escape(unit)}</text></svg>")
    return _figure(title, "".join(parts), "")


def _frame(title: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img aria-label="{escape(title, quote=True)}">'


def _figure(title: str, svg: str, legend: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{legend}</figure>"


def _times(start: float, end: float) -> list[tuple[float, str]]:
    """Five moments, by the hour and minute; with the seconds when all is within minutes."""
    shape = "%H:%M:%S" if end - start < 600 else "%H:%M" if end - start < 86400 * 1.5 else "%d %b %H:%M"
    moments = [start + (end - start) * at / 5 for at in range(6)]
    return [(at, datetime.fromtimestamp(at, UTC).strftime(shape)) for at in moments]
