"""How long things took, as counts in buckets: percentiles over any number of them, at a fixed size.

The buckets are an eighth of a doubling wide, so a percentile is within 5 % of what was measured. Counts of several
processes can be added up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

SHORTEST: Final = 1e-6  # Seconds; whatever is shorter counts as this.
PER_DOUBLING: Final = 8
HIGHEST: Final = 400  # A bucket for 1e9 seconds.
SHOWN: Final = (50, 95, 99)


class Durations(Counter[int]):
    """Counts by bucket."""

    def add(self, seconds: float) -> None:
        self[bucket(seconds)] += 1

    def percentile(self, percent: float) -> float:
        """The seconds within which *percent* of them ended; 0 while there are none."""
        return percentile(self, percent)


def bucket(seconds: float) -> int:
    """The bucket for something that took *seconds*."""
    return min(HIGHEST, round(PER_DOUBLING * math.log2(max(seconds, SHORTEST) / SHORTEST)))


def percentile(counts: Mapping[int, int], percent: float) -> float:
    """The seconds within which *percent* of those counted ended; 0 while there are none."""
    total, seen = sum(counts.values()), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= percent / 100 * total:
            return float(SHORTEST * 2 ** (number / PER_DOUBLING))
    return 0.0


def packed(durations: Iterable[float]) -> str:
    """The counts of *durations* as text for a script: ``bucket:count``, separated by spaces."""
    return " ".join(f"{number}:{count}" for number, count in Counter(map(bucket, durations)).items())
