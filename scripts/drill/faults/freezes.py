"""Processes that stand still for longer than two leases and go on, as with a laptop's lid or a paused machine."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

import psutil

from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import VISIBILITY, Stage

STANDS = 2.2 * VISIBILITY


class Freeze(Fault):
    """A worker's main process, a whole worker, a pool process, Redis and Beat stand still, one after the other."""

    name = "freeze"
    limit = "0 lost, 0 dead letters, doubled at most what a frozen worker held, workers live on"
    full_strikes = 5
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu",)  # There are no pool processes in the other.
    load: ClassVar[Mapping[str, Any]] = {"long": 1.5}

    def times(self, full: int | None = None) -> int:
        return self.full_strikes

    @property
    def lasts(self) -> float:
        return self.full_strikes * (STANDS + 2.0)

    def prepare(self, stage: Stage) -> None:
        stage.add_beat()

    def inject(self, stage: Stage) -> None:
        worker = stage.workers[0].process
        beat = stage.beat
        assert beat is not None
        ways = [[worker], [*worker.children(), worker], worker.children()[:1], [beat.process]]
        for processes in ways:
            self.stand_still(processes)
        stage.freeze_redis(STANDS)
        self.strikes += 1

    def stand_still(self, processes: list[psutil.Process]) -> None:
        """Stop *processes*, and let them go on after the time of two leases."""
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(STANDS)
        self.strikes += all(process.status() == psutil.STATUS_STOPPED for process in processes)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        time.sleep(1.0)

    def finally_(self, stage: Stage) -> None:
        self.letters = stage.letters()
        self.seen.append(f"{self.letters} dead letters")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        # Twice frozen, with two running and two fetched ahead each time.
        return super().passes(stage, count, result) and not self.letters and result.doubled <= 8 and self.strikes == 5
