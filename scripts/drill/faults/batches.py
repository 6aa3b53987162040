"""Batches and those who send them: a caller who is killed, and whoever feeds the deployment's durable batches."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any, ClassVar

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage
from graft.tasks.durable import feeder_lease

ENVELOPE = 4  # Items in each.
SECONDS = 0.05  # That each takes.


class CallerKill(Fault):
    """The caller of a batch is killed while it runs; stock's sends its tasks as fast as they are taken."""

    name = "caller-kill"
    limit = "0 lost, none doubled"
    load: ClassVar[dict[str, Any]] = {"long_share": 0, "seconds": SECONDS}

    @property
    def tasks(self) -> int:
        return max(300, super().tasks)

    def work(self) -> dict[str, Any]:
        return {"durable": self.tasks, "size": ENVELOPE, "seconds": SECONDS}

    def inject(self, stage: Stage) -> None:
        for caller in stage.callers:
            if caller.poll() is None:
                caller.kill()
                caller.wait()
                self.strikes += 1

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0 and result.sent == self.tasks


class FeederKill(CallerKill):
    """The process that feeds durable batches is killed again and again, after the caller; stock's only has a caller."""

    name = "feeder-kill"
    limit = "0 lost, doubled at most one envelope a kill"
    full_strikes = 20
    lanes = ("cpu",)  # In the other it is a thread of the worker.

    def inject(self, stage: Stage) -> None:
        super().inject(stage)
        killed = 0
        for _ in range(self.times() if stage.kind == "ours" else 0):
            stage.until(partial(self._is_fed, stage, killed), 30)
            feeder = self._feeder(stage)
            if not feeder or feeder == killed or not stage.count().lost:
                return
            os.kill(feeder, signal.SIGKILL)
            killed = feeder
            self.strikes += 1
            time.sleep(1.0)

    def _is_fed(self, stage: Stage, killed: int) -> bool:
        """Whether another feeds than the one that was killed, or there is nothing left to feed."""
        return self._feeder(stage) not in (0, killed) or not stage.count().lost

    @staticmethod
    def _feeder(stage: Stage) -> int:
        with stage.connect() as client:
            return int(feeder_lease.holder(client).rpartition("/")[2] or 0)

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return Fault.passes(self, stage, count, result) and result.doubled <= self.strikes * ENVELOPE
