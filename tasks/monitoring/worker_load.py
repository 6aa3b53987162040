"""The load: how much work waits for each pool slot, and the size that a worker should have. Pure, but for ``measure``.

One figure for every scaler, ours and those outside: what is running and what waits, over all priorities and what
workers have fetched, divided by the slots that could run it. 1.0 is exactly enough, 3.0 is work for three times as
many. The load is read from Redis; no worker is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from graft.config.queues import Lane, lane_of
from graft.tasks.monitoring.worker_registry import WorkerBeat, workers
from graft.tasks.queues.depth import unacked, waiting

LANES: Final[tuple[Lane, ...]] = ("cpu", "io")


@dataclass(frozen=True)
class Load:
    """One lane at one moment, in messages: ``waiting`` in its queues, ``fetched`` by workers, ``running`` in slots."""

    lane: str
    waiting: int
    fetched: int
    running: int
    slots: int
    workers: int

    @property
    def demand(self) -> int:
        """Messages that want a slot, those that have one included."""
        return self.waiting + self.fetched + self.running

    @property
    def per_slot(self) -> float:
        """Demand for each slot; with no slot at all, as if there were one."""
        return self.demand / max(self.slots, 1)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "demand": self.demand, "per_slot": round(self.per_slot, 3)}


def loads(depths: Mapping[str, int], beats: Iterable[WorkerBeat], held: int) -> list[Load]:
    """The load of each lane, and of ``all``.

    Workers that read queues of both lanes count in both. Messages that were fetched and are with no live worker
    (*held*, less what the living say they have) come back by themselves, so they are demand, too: counted in ``all``,
    since nothing says which queue they came from.
    """
    beats = list(beats)
    found = []
    for lane in LANES:
        readers = [beat for beat in beats if any(lane_of(queue) == lane for queue in beat.queues)]
        found.append(_load(lane, sum(depth for queue, depth in depths.items() if lane_of(queue) == lane), readers))
    everything = _load("all", sum(depths.values()), beats)
    orphans = max(0, held - everything.fetched - everything.running)
    return [*found, replace(everything, fetched=everything.fetched + orphans)]


def _load(lane: str, waits: int, beats: list[WorkerBeat]) -> Load:
    return Load(
        lane,
        waiting=waits,
        fetched=sum(beat.waiting for beat in beats),
        running=sum(beat.busy for beat in beats),
        slots=sum(beat.processes for beat in beats),
        workers=len(beats),
    )


def measure(client: Any = None) -> list[Load]:
    """The loads now: two round trips to the broker, two to the result backend."""
    return loads(waiting(), workers(client), unacked())


# ---- the size of a worker ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScalingRules:
    """When a worker changes its size: the rules of the old resource pool, with a memory.

    A load above ``crowded`` for ``patience`` seconds multiplies the size by ``factor``; one below ``quiet`` for
    ``idle`` seconds divides it. Between the two nothing changes, and each change starts the waiting anew.
    """

    low: int
    high: int
    factor: float = 2.0
    crowded: float = 1.5
    quiet: float = 0.5
    patience: float = 2.0
    idle: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"low={self.low} must be from 1 to high={self.high}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor} must be a finite number of at least 1")
        if not 0 <= self.quiet < self.crowded:
            raise ValueError(f"quiet={self.quiet} must be below crowded={self.crowded}, or the size never rests")


@dataclass(frozen=True)
class Decision:
    """The new size, and the sentence that says why, with its numbers."""

    size: int
    change: Literal["grow", "shrink", "stay"]
    reason: str


@dataclass(frozen=True)
class Scaler:
    """The rules, and since when the load has been out of bounds (seconds of any one clock)."""

    rules: ScalingRules
    crowded_since: float | None = None
    quiet_since: float | None = None

    def decide(self, size: int, per_slot: float, now: float) -> tuple[Scaler, Decision]:
        """The size that a worker of *size* should have at a load of *per_slot*, and the scaler that remembers."""
        rules = self.rules
        rested = Scaler(rules)
        if size < rules.low or size > rules.high:
            wanted = min(max(size, rules.low), rules.high)
            return rested, _change(size, wanted, f"it must be from {rules.low} to {rules.high}")
        if per_slot > rules.crowded:
            since = now if self.crowded_since is None else self.crowded_since
            if now - since < rules.patience or size == rules.high:
                return Scaler(rules, crowded_since=since), _stay(size, per_slot)
            wanted = min(max(int(size * rules.factor), size + (rules.factor > 1)), rules.high)
            why = f"{per_slot:.2f} messages per slot for {now - since:.0f} s, above {rules.crowded:g}"
            return rested, _change(size, wanted, why)
        if per_slot < rules.quiet:
            since = now if self.quiet_since is None else self.quiet_since
            if now - since < rules.idle or size == rules.low:
                return Scaler(rules, quiet_since=since), _stay(size, per_slot)
            wanted = max(int(size / rules.factor), rules.low)
            why = f"{per_slot:.2f} messages per slot for {now - since:.0f} s, below {rules.quiet:g}"
            return rested, _change(size, wanted, why)
        return rested, _stay(size, per_slot)


def load_of(queues: Iterable[str], all_loads: Mapping[str, Load]) -> Load:
    """The load that concerns a worker reading *queues*: its lane's, or everything's when it reads both."""
    lanes = {lane_of(queue) for queue in queues}
    return all_loads[lanes.pop()] if len(lanes) == 1 else all_loads["all"]


def _stay(size: int, per_slot: float) -> Decision:
    return Decision(size, "stay", f"{per_slot:.2f} messages per slot")


def _change(size: int, wanted: int, why: str) -> Decision:
    if wanted == size:
        return Decision(size, "stay", why)
    return Decision(wanted, "grow" if wanted > size else "shrink", f"{size} -> {wanted}: {why}")
