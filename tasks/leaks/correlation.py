"""Which callables ran while something grew. A correlation: it says where to search first, and proves nothing. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation
from typing import Final

ENOUGH: Final = 0.5


@dataclass(frozen=True)
class RanMeanwhile:
    """``share`` is the part of all growth that came while *name* ran, ``items`` how many of it ran."""

    name: str
    share: float
    items: int


def ran_meanwhile(steps: Sequence[tuple[float, Mapping[str, int]]], most: int = 3) -> list[RanMeanwhile]:
    """The callables that ran during most of the growth, the most correlated first.

    Args:
        steps: what was added between two measurements (losses count as nothing), and what ran between them.
        most: so many names at most.
    """
    total = sum(max(0.0, grown) for grown, _ in steps)
    if total <= 0:
        return []
    items: Counter[str] = Counter()
    present: defaultdict[str, float] = defaultdict(float)
    for grown, ran in steps:
        for name, count in ran.items():
            items[name] += count
            present[name] += max(0.0, grown)
    found = [RanMeanwhile(name, present[name] / total, items[name]) for name in present]
    often = [one for one in found if one.share >= ENOUGH]
    # Where several always ran, the one whose numbers rise and fall with the growth comes first.
    return sorted(often, key=lambda one: (-round(one.share, 1), -_correlation(one.name, steps)))[:most]


def _correlation(name: str, steps: Sequence[tuple[float, Mapping[str, int]]]) -> float:
    grown, counts = [step[0] for step in steps], [float(step[1].get(name, 0)) for step in steps]
    if len(set(grown)) < 2 or len(set(counts)) < 2:
        return 0.0
    return correlation(grown, counts)
