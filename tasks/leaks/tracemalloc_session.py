"""Traced allocations on demand: a process traces for a while, and shows where its memory was allocated.

Tracing makes a process about half as fast, so it is requested by a person and ends by itself.
"""

from __future__ import annotations

import gc
import json
import linecache
import tracemalloc
from typing import Any, Final

from graft.config import keys

REQUESTED: Final = f"{keys.TRACE}:"
TRACED: Final = f"{keys.TRACE}d:"
KEPT: Final = 3600
LINES: Final = 15
IGNORED: Final = [
    tracemalloc.Filter(False, tracemalloc.__file__),
    tracemalloc.Filter(False, "<frozen importlib._bootstrap>"),
]


def request(process: str, seconds: float, client: Any) -> None:
    """Have *process* (the key of its series) trace for so many seconds."""
    client.delete(TRACED + process)
    client.set(REQUESTED + process, seconds, ex=KEPT)


def result(process: str, client: Any) -> list[dict[str, Any]] | None:
    """Where memory was allocated and not freed, the most first; None while *process* traces."""
    text = client.get(TRACED + process)
    return json.loads(text) if text else None


class Tracer:
    """The part of a session that runs in the traced process."""

    def __init__(self) -> None:
        self._until = 0.0
        self._before: tracemalloc.Snapshot | None = None

    def step(self, process: str, now: float, client: Any) -> None:
        """Begin where tracing is requested; publish the result when its time is over."""
        if self._before is None:
            seconds = client.getdel(REQUESTED + process)
            if seconds is not None:
                gc.collect()
                tracemalloc.start()
                self._before, self._until = tracemalloc.take_snapshot(), now + float(seconds)
        elif now >= self._until:
            gc.collect()  # Garbage that waits to be collected is no leak.
            after, before, self._before = tracemalloc.take_snapshot(), self._before, None
            tracemalloc.stop()
            client.set(TRACED + process, json.dumps(_grown(before, after)), ex=KEPT)


def _grown(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> list[dict[str, Any]]:
    differences = after.filter_traces(IGNORED).compare_to(before.filter_traces(IGNORED), "lineno")
    largest = sorted(differences, key=lambda one: -one.size_diff)[:LINES]
    lines = [(one, one.traceback[0]) for one in largest if one.size_diff > 0]
    return [
        {
            "file": frame.filename,
            "line": frame.lineno,
            "bytes": one.size_diff,
            "blocks": one.count_diff,
            "code": linecache.getline(frame.filename, frame.lineno).strip(),
        }
        for one, frame in lines
    ]
