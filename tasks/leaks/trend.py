"""Whether a series of measurements is a leak. Pure.

A leak grows by more than noise could (*floor*), surely (the lower end of its slope's confidence interval is above 0),
and goes on: the later half grows, at no less than half of the whole's pace. A cache that fills, a process that warms
up and a single large object do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from graft.tasks.leaks.theil_sen import Slope, theil_sen, thin

Grade = Literal["clean", "suspect", "leaking"]
ENOUGH: Final = 20  # Measurements; fewer prove nothing.
SURE: Final = 30  # Fewer than these show a suspect at most: everything grows when it begins.
LATELY: Final = 40  # A leak that began after hours without one is seen in the last of them first.
KEEPS_ON: Final = 0.5


@dataclass(frozen=True)
class Measure:
    """Something that may grow: below ``floor`` units, or below ``share`` of its usual value, growth is noise.

    ``worst`` is the gravest verdict that it can come to.
    """

    name: str
    unit: str
    floor: float
    share: float = 0.0
    worst: Grade = "leaking"


PROCESS: Final = (
    Measure("memory", "MiB", 8.0, 0.05),
    Measure("files", "files", 8),
    Measure("sockets", "sockets", 8),
    Measure("pipes", "pipes", 16),
    Measure("threads", "threads", 8),
    Measure("coroutines", "asyncio tasks", 50),
    Measure("objects", "objects", 50_000, 0.2, "suspect"),
)


@dataclass(frozen=True)
class Trend:
    """How a series goes. ``growth`` is its slope over its whole length, in units."""

    verdict: Grade
    slope: Slope
    growth: float
    span: float
    first: float
    last: float


def trend(times: Sequence[float], values: Sequence[float], measure: Measure) -> Trend:
    """The verdict on *values* of *measure* at *times* (seconds, ascending): on all of them, or on the last alone."""
    if len(times) > LATELY:
        lately = _trend(times[-LATELY:], values[-LATELY:], measure)
        if lately.verdict == measure.worst:
            return lately
    return _trend(times, values, measure)


def _trend(times: Sequence[float], values: Sequence[float], measure: Measure) -> Trend:
    if not values or max(values) - min(values) < measure.floor / 2:  # Most series, most of the time.
        first, last = (values[0], values[-1]) if values else (0.0, 0.0)
        return Trend(
            "clean", Slope(0.0, 0.0, 0.0, len(values)), 0.0, times[-1] - times[0] if times else 0.0, first, last
        )
    thinned, smoothed = thin(times, values)
    span = thinned[-1] - thinned[0] if thinned else 0.0
    slope = theil_sen(thinned, smoothed)
    growth = slope.per_second * span
    first, last = (smoothed[0], smoothed[-1]) if smoothed else (0.0, 0.0)
    found = Trend("clean", slope, growth, span, first, last)
    if len(thinned) < ENOUGH or slope.low <= 0:
        return found
    floor = max(measure.floor, measure.share * abs(median(smoothed)))
    half = len(thinned) // 2
    recent = theil_sen(thinned[half:], smoothed[half:], z=1.96)
    goes_on = recent.per_second >= KEEPS_ON * slope.per_second
    verdict: Grade = "clean"
    if goes_on and recent.low > 0:
        if growth >= floor:
            verdict = measure.worst if len(times) >= SURE else "suspect"
        elif growth >= floor / 2:
            verdict = "suspect"
    return Trend(verdict, slope, growth, span, first, last)
