"""One fault of the drill, and its result.

``play`` runs the fault on a stage of its own; most faults only define how to ``inject`` it while the load runs.
The limits hold for the full drill (``--scale 1``). A smaller scale has fewer tasks and fewer strikes, but each
fault happens, and the drill checks that it did.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graft.config.deployment import settings
from graft.config.queues import Lane
from graft.scripts.drill import checkers, history
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Kind, Stage

FULL_LOAD = 10_000


@dataclass(frozen=True)
class FaultResult:
    """The result of one fault. ``seconds`` is the time from its end to the first new run, None where none was due."""

    fault: str
    kind: Kind
    passed: bool
    sent: int
    unsure: int
    lost: int
    doubled: int
    runs: int
    ended: int
    strikes: int
    seconds: float | None
    limit: str
    seen: str = ""
    skipped: str = ""  # Why the fault cannot be played on this machine.


class Fault:
    """One fault under the standard load: tasks of 20 ms, every tenth of one second, two workers of two processes."""

    name: ClassVar[str] = ""
    limit: ClassVar[str] = ""
    full_strikes: ClassVar[int] = 1
    stage: ClassVar[Mapping[str, Any]] = {}
    load: ClassVar[Mapping[str, Any]] = {}
    on: ClassVar[type[Stage]] = Stage
    by_default: ClassVar[bool] = True
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu", "io")
    kinds: ClassVar[tuple[Kind, ...]] = ("ours", "stock")

    def __init__(self, scale: float, lane: Lane = "cpu") -> None:
        self.scale = scale
        self.lane = lane
        self.strikes = 0
        self.seen: list[str] = []

    def times(self, full: int | None = None) -> int:
        """Strikes at this scale: at least two, unless the full drill has one."""
        full = self.full_strikes if full is None else full
        return min(full, max(2, round(full * self.scale)))

    @property
    def tasks(self) -> int:
        return max(60, round(FULL_LOAD * self.scale))

    @property
    def lasts(self) -> float:
        """Seconds that it takes about: the load is spread over them."""
        return 6.0

    @property
    def busy(self) -> float:
        """Seconds that all workers take for the load, when none of them rests."""
        slots = int(self.stage.get("workers", 2)) * int(self.stage.get("concurrency", 2))
        load = self.work()
        share = float(load.get("long_share", 0.1))
        each = (1 - share) * float(load.get("seconds", 0.02)) + share * float(load.get("long", 1.0))
        return int(load.get("count", self.tasks)) * each / slots

    @property
    def estimate(self) -> float:
        """Seconds that it takes about, of which most pass while the workers catch up with the load."""
        return 20.0 + max(self.lasts, self.busy)

    @classmethod
    def unavailable(cls) -> str:
        """What this machine lacks to play the fault, or nothing."""
        return ""

    def skip(self, kind: Kind) -> FaultResult:
        """The result of a fault that cannot be played here: neither passed nor failed."""
        return FaultResult(self.name, kind, False, 0, 0, 0, 0, 0, 0, 0, None, self.limit, skipped=self.unavailable())

    def play(self, kind: Kind) -> FaultResult:
        """Run the fault on a stage of its own."""
        with self.on(kind, lane=self.lane, **self.stage) as stage:
            self.prepare(stage)
            stage.produce(**self.work())
            stage.until(lambda: len(stage.count().starts) > min(20, int(self.load.get("count", self.tasks)) // 4), 60)
            self.inject(stage)
            healed = time.monotonic()
            self.after(stage)
            stage.settle(max(90.0, 600.0 * self.scale, 2.0 * self.busy))
            self.finally_(stage)
            stage.restart_ended()
            return self.result(stage, stage.count(), healed)

    def work(self) -> dict[str, Any]:
        """What the caller does meanwhile (produce.py)."""
        return {"count": self.tasks, "rate": min(100.0, self.tasks / self.lasts), **self.load}

    def prepare(self, stage: Stage) -> None:
        """Before the load begins."""

    def inject(self, stage: Stage) -> None:
        """While it runs; counts its strikes."""

    def after(self, stage: Stage) -> None:
        """Once the fault is over."""

    def finally_(self, stage: Stage) -> None:
        """Once everything has come to rest."""

    def result(self, stage: Stage, count: Count, healed: float) -> FaultResult:
        result = FaultResult(
            f"{self.name}{', io lane' if self.lane == 'io' else ', direct' if settings().pool == 'direct' else ''}",
            stage.kind,
            False,
            len(count.sent),
            len(count.unsure),
            count.lost,
            count.doubled,
            max((runs for label, runs in count.starts.items() if not label.startswith(".")), default=0),
            len(stage.ended),
            self.strikes,
            count.next_start(healed),
            self.limit,
        )
        passed = self.strikes > 0 and self.passes(stage, count, result)
        seen = history.of_ledger(stage.ledger)
        asked = {one.on for one in seen if one.kind == "ask"}
        flaws = checkers.answers(one for one in seen if one.on in asked)
        self.seen += flaws[:3]
        passed = passed and not flaws
        return replace(result, passed=passed, seen="; ".join(self.seen))

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return result.lost == 0 and result.ended == 0
