"""The best size of something, found by trying a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def sizes(count: int, processes: int) -> list[int]:
    """Sizes worth trying for *count* items: from a few to all shared out at once."""
    shares = {-(-count // (processes * part)) for part in (1, 2, 4, 8, 32)}
    return sorted({size for size in shares | {10, 100, 500} if 1 <= size <= max(1, count)})


def best(candidates: Sequence[int], attempt: Callable[[int], object], rounds: int = 2, patience: float = 3.0) -> int:
    """The candidate whose *attempt* was quickest in the best of *rounds*; stops early when *patience* seconds are up.

    Goes from the largest to the smallest: where each piece costs much, the large ones are over soon.
    """
    began = time.perf_counter()
    times: dict[int, float] = {}
    for _ in range(rounds):
        for size in sorted(candidates, reverse=True):
            if times and time.perf_counter() - began > patience:
                break
            moment = time.perf_counter()
            attempt(size)
            took = time.perf_counter() - moment
            times[size] = min(took, times.get(size, took))
    return min(times, key=lambda size: times[size])
