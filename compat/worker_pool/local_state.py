"""A pool's ledger in this process alone: for ``GRAFT_MODE=local``, and for pools used inside a task."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence

from graft.tasks.pools.state import Done, Entry, Holder, Limits, Standing, State, Taken, Turn

ORDER = ("new", "running", "closing", "closed")


class LocalLedger:
    """The same steps as ``RedisLedger``, under one lock; nothing dies here by itself, so nothing is given back."""

    def __init__(self, limits: Limits, limit: int) -> None:
        self._lock = threading.Lock()
        self._capacity = limits.capacity
        self._limit = limit
        self._state: State = "new"
        self._waiting: list[tuple[float, str, Entry]] = []
        self._running: dict[int, str] = {}
        self._reserved = 0
        self._submitted = self._completed = self._failed = self._abandoned = self._peak = 0
        self._busy = self._started = self._ended = 0.0

    @property
    def _slots(self) -> int:
        return self._limit if self._state in ("running", "closing") else 0

    def start(self) -> tuple[State, list[str]]:
        with self._lock:
            if self._state == "new":
                self._state = "running"
                self._started = time.time()
            return self._state, []

    def reserve(self, client: str, ready: int, *, more: bool) -> tuple[State, int, int]:
        with self._lock:
            if self._state not in ("new", "running"):
                return self._state, 0, 0
            idle = max(0, self._slots - len(self._running))
            if self._capacity + idle - len(self._waiting) - self._reserved < 1:
                return self._state, 0, 0
            self._reserved += 1
            return self._state, 1, 0

    def add(self, client: str, batch: int, unused: int, entries: Sequence[Entry]) -> tuple[State, list[str]]:
        with self._lock:
            self._reserved -= len(entries) + unused
            for entry in entries:
                self._submitted += 1
                heapq.heappush(self._waiting, (entry.score, f"{self._submitted:016d}", entry))
            if self._state == "closed":
                self._abandon()
            return self._state, []

    def begin(self, holder: Holder) -> Turn:
        with self._lock:
            return self._take()

    def step(self, holder: Holder, done: Done, *, more: bool) -> Turn:
        with self._lock:
            self._running.pop(done.taken.slot, None)
            self._completed += 1
            self._failed += done.failed
            self._busy += done.seconds
            return self._take() if more else Turn("done")

    def _take(self) -> Turn:
        if not self._waiting or len(self._running) >= self._slots:
            return Turn("done")
        slot = next(number for number in range(self._slots) if number not in self._running)
        _, member, entry = heapq.heappop(self._waiting)
        self._running[slot] = member
        self._peak = max(self._peak, len(self._running))
        return Turn("task", Taken(slot, member, entry.reply, entry.content, 0))

    def renew(self, holder: Holder, taken: Taken) -> bool:
        return True

    def tend(self, client: str) -> tuple[State, list[str]]:
        with self._lock:
            return self._state, []

    def standing(self) -> Standing:
        with self._lock:
            return Standing(
                self._state, self._limit, len(self._waiting), len(self._running), self._reserved, self._submitted,
                self._completed, self._failed, self._abandoned, self._busy, self._peak, self._started, self._ended,
                time.time(),
            )  # fmt: skip

    def close(self, state: State) -> tuple[State, list[str], list[str]]:
        with self._lock:
            if ORDER.index(state) > ORDER.index(self._state):
                self._state = state
                self._ended = time.time()
                self._started = self._started or self._ended
            if self._state == "closed":
                self._abandon()
            return self._state, [], []

    def resize(self, limit: int) -> tuple[State, list[str]]:
        with self._lock:
            self._limit = limit
            return self._state, []

    def withdraw(self, replies: Sequence[str]) -> int:
        with self._lock:
            kept = [one for one in self._waiting if one[2].reply not in replies]
            count = len(self._waiting) - len(kept)
            self._abandoned += count
            self._waiting = kept
            heapq.heapify(self._waiting)
            return count

    def _abandon(self) -> None:
        self._abandoned += len(self._waiting)
        self._waiting.clear()
