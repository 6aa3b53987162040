"""A figure over its last hour and day, as few numbers as can be drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0
MOST: Final = 144  # Values of a day: one for each ten minutes.


@dataclass(frozen=True)
class Series:
    """One figure over time, the oldest first."""

    hour: tuple[float, ...] = ()
    day: tuple[float, ...] = ()


def split(points: Sequence[tuple[float, float]], now: float) -> Series:
    """The series of *points* (time, value), the oldest first, as seen *now*."""
    recent = [value for at, value in points if now - at <= HOUR]
    return Series(tuple(round(value, 3) for value in recent), tuple(round(value, 3) for value in _thin(points)))


def _thin(points: Sequence[tuple[float, float]], most: int = MOST) -> list[float]:
    """At most *most* values; of each stretch the highest, so that a peak is not lost."""
    if len(points) <= most:
        return [value for _, value in points]
    return [
        max(value for _, value in points[len(points) * at // most : len(points) * (at + 1) // most])
        for at in range(most)
    ]
