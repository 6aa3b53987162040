"""What is judged by the history of every actor: a shared semaphore and rate limit, and the order of a queue."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar, Final

from graft.scripts.drill import checkers, history
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.faults.processes import PoolProcessKills
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.limited import BURST, LEASE, PERIOD, PERMITS, RATE, SEMAPHORE
from graft.scripts.drill.stage import Kind, Stage

POOL_WORKERS: Final = 2


class SharedLimits(PoolProcessKills):
    """Tasks share a semaphore and a rate limit, while a pool process is killed every two seconds."""

    name = "shared-limits"
    limit = "no permit too many, no pass too early, 0 lost"
    kinds: ClassVar[tuple[Kind, ...]] = ("ours",)  # Celery has neither.
    load: ClassVar[dict[str, Any]] = {"task": "limited", "long_share": 0, "seconds": 0.1}

    @property
    def tasks(self) -> int:
        return max(60, round(2000 * self.scale))

    def prepare(self, stage: Stage) -> None:
        self._path = Path(stage.env["DRILL_HISTORY"])

    def finally_(self, stage: Stage) -> None:
        seen = history.read(self._path)
        permits = [one for one in seen if one.on == SEMAPHORE]
        passes = [one for one in seen if one.on == RATE]
        self.flaws = [*checkers.semaphore(permits, PERMITS, LEASE), *checkers.rate(passes, PERIOD, BURST)]
        self.seen.append(f"{len(permits)} operations on the semaphore, {len(passes)} on the rate limit")
        self.seen += self.flaws[:3]

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and not self.flaws


class PoolBound(PoolProcessKills):
    """Tasks run in a worker pool of two, on four processes of which one is killed every two seconds."""

    name = "pool-bound"
    limit = "never more at once than the pool has workers, every task answered once, doubled at most one a kill"
    kinds: ClassVar[tuple[Kind, ...]] = ("ours",)  # Celery has no such pool.
    load: ClassVar[dict[str, Any]] = {"long_share": 0, "seconds": 0.1}

    @property
    def tasks(self) -> int:
        return max(60, round(2000 * self.scale))

    def work(self) -> dict[str, Any]:
        return {"pooled": self.tasks, "workers": POOL_WORKERS, "seconds": 0.1}

    def finally_(self, stage: Stage) -> None:
        self.flaws = checkers.bound(history.of_ledger(stage.ledger), POOL_WORKERS)
        self.seen += self.flaws

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled <= self.strikes and not self.flaws


class InOrder(Fault):
    """One process takes tasks from one queue, while all connections are cut again and again."""

    name = "in-order"
    limit = "taken in the order in which they were sent, 0 lost, 0 doubled"
    full_strikes = 10
    lanes = ("cpu",)
    stage: ClassVar[dict[str, Any]] = {"workers": 1, "concurrency": 1}
    load: ClassVar[dict[str, Any]] = {"long_share": 0}

    @property
    def lasts(self) -> float:
        return 2.0 * self.times() + 2.0

    def inject(self, stage: Stage) -> None:
        for _ in range(self.times()):
            self.strikes += bool(stage.cut_connections())
            time.sleep(2.0)

    def finally_(self, stage: Stage) -> None:
        self.flaws = checkers.order(history.of_ledger(stage.ledger))
        self.seen += self.flaws[:3]

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0 and not self.flaws
