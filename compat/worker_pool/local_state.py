"""A pool's state in this process alone: for ``GRAFT_MODE=local``, and for pools used inside a task."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from graft.tasks.monitoring.durations import Durations
from graft.tasks.pools.state import HAS_TO_WAIT, Change, Limits, PoolStatus, State, Waiting

RANKS = ("new", "running", "closing", "closed")


class LocalPool:
    """The same calls as ``RedisPool``, under one lock. Its only client keeps the order of what waits."""

    def __init__(self, limits: Limits, limit: int) -> None:
        self._lock = threading.Lock()
        self._capacity = limits.capacity
        self._state: State = "new"
        self._slots: dict[str, int] = {}
        self._totals: dict[str, Any] = {"limit": limit, "unfinished": 0}
        self._took = Durations()

    def _add(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self._totals[name] = self._totals.get(name, 0) + number

    @property
    def _limit(self) -> int:
        return int(self._totals["limit"]) if self._state in ("running", "closing") else 0

    def reserve(self, client: str, wanted: int, ready: int, unused: int = 0) -> tuple[State, int, int]:
        with self._lock:
            if self._state not in ("new", "running"):
                return self._state, 0, 0
            free = self._capacity + max(len(self._slots), self._limit) - self._totals["unfinished"]
            granted = max(0, min(wanted, free))
            self._add(unfinished=granted, submitted=granted)
            return self._state, granted, 0

    def begin(self, member: str, score: float, owner: str = "") -> int:
        with self._lock:
            if len(self._slots) >= self._limit:
                return HAS_TO_WAIT
            number = min(set(range(self._limit)) - set(self._slots.values()))
            self._slots[member] = number
            self._totals["peak"] = max(self._totals.get("peak", 0), len(self._slots))
            return number

    def park(self, waiting: Sequence[Waiting]) -> Sequence[bytes]:
        return ()

    def withdraw(self, client: str, members: Mapping[str, int]) -> tuple[list[str], Sequence[bytes]]:
        return list(members), self.abandon(client, len(members))

    def finish(self, member: str, client: str, tasks: int, failed: int, seconds: float) -> Sequence[bytes]:
        with self._lock:
            self._slots.pop(member, None)
            self._add(unfinished=-tasks, completed=tasks, failed=failed, busy=seconds)
            if tasks:
                self._took.add(seconds)
            return ()

    def abandon(self, client: str, tasks: int) -> Sequence[bytes]:
        with self._lock:
            if self._state != "closed":
                self._add(unfinished=-tasks, abandoned=tasks)
            return ()

    def tend(self, client: str, unused: int = 0) -> tuple[State, int, Sequence[bytes]]:
        with self._lock:
            return self._state, self._totals["limit"], ()

    def enter(self, state: State, client: str = "", unused: int = 0) -> Change:
        with self._lock:
            if RANKS.index(state) > RANKS.index(self._state):
                self._state = state
                self._totals.setdefault("started", time.time())
                if state != "running":
                    self._totals["ended"] = time.time()
                if state == "closed":
                    waiting = self._totals["unfinished"] - len(self._slots)
                    self._add(unfinished=-waiting, abandoned=waiting)
            return Change(self._state)

    def resize(self, limit: int) -> Change:
        with self._lock:
            self._totals["limit"] = limit
            return Change(self._state)

    def status(self) -> PoolStatus:
        with self._lock:
            return PoolStatus(
                self._state, running=len(self._slots), now=time.time(), took=dict(self._took), **self._totals
            )
