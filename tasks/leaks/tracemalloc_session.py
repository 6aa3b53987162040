"""Traced allocations on demand: a person asks, the process traces for a while and tells where its memory was allocated.

Tracing makes a process about half as fast, so it is asked for and ends by itself.
"""

from __future__ import annotations

import gc
import json
import linecache
import tracemalloc
from typing import Any, Final

ASKED: Final = "graft:leaks:trace:"
TOLD: Final = "graft:leaks:traced:"
KEPT: Final = 3600
LINES: Final = 15


def ask(process: str, seconds: float, client: Any) -> None:
    """Have *process* (the key of its series) trace for so many seconds."""
    client.delete(TOLD + process)
    client.set(ASKED + process, seconds, ex=KEPT)


def answer(process: str, client: Any) -> list[dict[str, Any]] | None:
    """Where memory was allocated and not freed, the most first; None while it is being traced."""
    text = client.get(TOLD + process)
    return json.loads(text) if text else None


class Tracer:
    """The side of the process."""

    def __init__(self) -> None:
        self._until = 0.0
        self._before: tracemalloc.Snapshot | None = None

    def step(self, process: str, now: float, client: Any) -> None:
        """Begin when somebody has asked, and tell when the time is over."""
        if self._before is None:
            asked = client.getdel(ASKED + process)
            if asked is not None:
                gc.collect()
                tracemalloc.start()
                self._before, self._until = tracemalloc.take_snapshot(), now + float(asked)
        elif now >= self._until:
            gc.collect()  # What only waits for the garbage collector is not kept.
            after, before, self._before = tracemalloc.take_snapshot(), self._before, None
            tracemalloc.stop()
            client.set(TOLD + process, json.dumps(_told(before, after)), ex=KEPT)


def _told(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> list[dict[str, Any]]:
    ignored = (
        tracemalloc.Filter(False, tracemalloc.__file__),
        tracemalloc.Filter(False, "<frozen importlib._bootstrap>"),
    )
    differences = after.filter_traces(ignored).compare_to(before.filter_traces(ignored), "lineno")
    told = []
    for one in sorted(differences, key=lambda one: -one.size_diff)[:LINES]:
        if one.size_diff > 0:
            frame = one.traceback[0]
            line = linecache.getline(frame.filename, frame.lineno).strip()
            told.append(
                {
                    "file": frame.filename,
                    "line": frame.lineno,
                    "bytes": one.size_diff,
                    "blocks": one.count_diff,
                    "code": line,
                }
            )
    return told
