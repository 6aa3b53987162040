"""Runs of items' positions, as pairs of the first and the last one; as text "0-99,104-104"."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from operator import itemgetter

Runs = Iterable[tuple[int, int]]


def as_runs(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending *positions* as pairs of the first and the last one of each run."""
    if isinstance(positions, range) and positions.step == 1:
        return [(positions.start, positions.stop - 1)] if positions else []
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position - 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs


def as_text(runs: Runs) -> str:
    return ",".join(f"{first}-{last}" for first, last in runs)


def runs_in(text: str) -> list[tuple[int, int]]:
    return [(int(first), int(last)) for first, last in re.findall(r"(\d+)-(\d+)", text)]


def positions_in(runs: Runs) -> Iterator[int]:
    for first, last in runs:
        yield from range(first, last + 1)


def clear_runs(bits: bytes, total: int) -> list[tuple[int, int]]:
    """The runs of positions below *total* whose bits are 0; Redis counts bits from the left of each byte."""
    bits = bits[: (total + 7) // 8].ljust((total + 7) // 8, b"\0")
    runs: list[tuple[int, int]] = []
    for found in re.finditer(rb"[^\xff]+", bits):
        text = "".join(map("{:08b}".format, found.group())) if found.group().strip(b"\0") else ""
        at = 8 * found.start()
        if not text:
            runs.append((at, 8 * found.end() - 1))
            continue
        runs += [(at + one.start(), at + one.end() - 1) for one in re.finditer("0+", text)]
    return [(first, min(last, total - 1)) for first, last in _joined(runs) if first < total]


def _joined(runs: Runs) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def without(runs: Runs, others: Runs) -> list[tuple[int, int]]:
    """*runs* without the positions in *others*."""
    left: list[tuple[int, int]] = []
    taken = sorted(others)
    for first, last in runs:
        at = first
        for start, stop in taken[bisect_left(taken, at, key=itemgetter(1)) :]:
            if start > last:
                break
            if start > at:
                left.append((at, start - 1))
            at = stop + 1
        if at <= last:
            left.append((at, last))
    return left
