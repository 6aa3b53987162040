"""What these tests send to workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests import samples


def doubled(x: int) -> int:
    return x * 2


def kept_types(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values


async def doubled_async(x: int) -> int:
    return x * 2


def timed(path: str, batch: list[Any], seconds: float = 0.15) -> list[Any]:
    """Note when it began and ended: see :func:`most_at_once`."""
    samples.note((path, f"{time.time()} 1"))
    time.sleep(seconds)
    samples.note((path, f"{time.time()} -1"))
    return batch


def timed_from(batch: list[Any]) -> list[Any]:
    """The first element of each item is the path."""
    timed(batch[0][0], batch)
    return [number for _, number in batch]


def timed_item(path_and_number: tuple[str, int]) -> int:
    timed(path_and_number[0], [], 0.1)
    return path_and_number[1]


def most_at_once(path: Any) -> int:
    """How many ran at the same time, of those that noted their times in the file at *path*."""
    notes = [line.split() for line in Path(path).read_text().splitlines()]
    running = most = 0
    for _, change in sorted((float(at), int(change)) for at, change in notes):
        running += change
        most = max(most, running)
    return most
