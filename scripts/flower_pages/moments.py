"""The deployment now, its rates and its last day, for pages that show them live: what ``top`` and the report read."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Final

from graft.config.redis_client import shared
from graft.scripts import snapshot
from graft.scripts.flower_pages.reading import serves
from graft.scripts.snapshot import Rates, Snapshot
from graft.tasks.health import history

PAST_FRESH: Final = 15.0  # Seconds; Beat adds to the history every thirty.
FRESH: Final = 0.9  # Seconds for which one snapshot serves all pages, at least.
LONGEST: Final = 60.0  # Seconds after which a snapshot says nothing of the rates of now.
SPAN: Final = 10.0  # Seconds over which rates are measured, where somebody has looked for so long.


@dataclass(frozen=True)
class Moment:
    """The deployment now; ``rates`` are None until a second look."""

    now: Snapshot
    rates: Rates | None


class Moments:
    """The snapshots of the last seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: deque[Snapshot] = deque()
        self._is_old = False
        self._serves = FRESH  # Seconds for which the last snapshot serves.
        self._past: tuple[float, list[history.Snapshot]] = (0.0, [])

    def take(self) -> Moment:
        """Look, and compare with the snapshot before. Raises RedisError."""
        with self._lock:
            if self._is_old or not self._taken or time.time() - self._taken[-1].at > self._serves:
                self._is_old, busy = False, time.thread_time()
                now = snapshot.take()
                self._serves = serves(FRESH, time.thread_time() - busy)
                while len(self._taken) > 1 and now.at - self._taken[1].at >= SPAN:
                    self._taken.popleft()
                if self._taken and now.at - self._taken[0].at >= LONGEST:
                    self._taken.clear()
                self._taken.append(now)
            first, last = self._taken[0], self._taken[-1]
            return Moment(last, snapshot.rates(first, last) if first is not last else None)

    def forget(self) -> None:
        """Look again when next asked: somebody has acted."""
        with self._lock:
            self._is_old = True

    def past(self) -> list[history.Snapshot]:
        """The last day, as Beat has it noted; the oldest first."""
        if time.monotonic() - self._past[0] > PAST_FRESH or not self._past[0]:
            self._past = (time.monotonic(), history.newer(shared(), self._past[1]))
        return self._past[1]


@cache
def moments() -> Moments:
    """Those of this process."""
    return Moments()
