"""Processes that are lost: pool processes, workers, and tasks that kill them."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from functools import partial
from typing import ClassVar

import psutil

from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage


class PoolProcessKills(Fault):
    """What is played while a pool process is killed every two seconds."""

    full_strikes = 20
    lanes = ("cpu",)  # There are no pool processes in the other.

    @property
    def lasts(self) -> float:
        return 2.0 * self.times() + 2.0

    def inject(self, stage: Stage) -> None:
        for _ in range(self.times()):
            if processes := stage.pool_processes():
                with suppress(psutil.NoSuchProcess):
                    random.choice(processes).kill()
                    self.strikes += 1
            time.sleep(2.0)
            stage.restart_ended()


class ChildKill(PoolProcessKills):
    """A pool process is killed every two seconds."""

    name = "child-kill"
    limit = "0 lost, doubled at most one a kill"

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled <= self.strikes


class WorkerKill(Fault):
    """One of the two workers is killed with its processes, as the loss of a machine would."""

    name = "worker-kill"
    limit = "0 lost, doubled at most its prefetch, all run within lease + 10 s"

    def inject(self, stage: Stage) -> None:
        stage.workers.pop(0).kill()
        self.strikes += 1
        self._at = time.monotonic()

    def after(self, stage: Stage) -> None:
        stage.add_drill_worker()

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled <= 4


class Poison(Fault):
    """A task that kills its pool process each time it runs."""

    name = "poison-process"
    limit = "exactly 3 runs, 1 dead letter, the rest done"
    task: ClassVar[str] = "kill_process"
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu",)

    def inject(self, stage: Stage) -> None:
        stage.run({"count": 1, "task": self.task, "prefix": ".poison"})
        stage.until(lambda: stage.count().starts[".poison0"] > 0, 60)
        self.strikes = stage.count().starts[".poison0"]

    def after(self, stage: Stage) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not stage.letters():
            stage.restart_ended()
            if stage.count().starts[".poison0"] > 20:
                break
            time.sleep(0.2)

    def finally_(self, stage: Stage) -> None:
        self.letters, self.poisoned = stage.letters(), stage.count().starts[".poison0"]
        self.seen.append(f"the poison ran {self.poisoned} times, {self.letters} dead letters")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return result.lost == 0 and (self.poisoned, self.letters) == (3, 1)


class PoisonWorker(Poison):
    """A task that kills the whole worker each time; a supervisor starts another."""

    name = "poison-worker"
    task = "kill_worker"
    lanes = ("cpu", "io")


class Rolling(Fault):
    """Workers are replaced one after the other: by SIGTERM, by SIGQUIT, and by SIGTERM to the whole process group."""

    name = "rolling-restarts"
    limit = "0 lost, doubled at most 2 x concurrency each, each ends within 30 s"
    full_strikes = 10
    slowest = 0.0

    @property
    def lasts(self) -> float:
        return 6.0 * max(3, self.times())

    def inject(self, stage: Stage) -> None:
        ways = [(signal.SIGTERM, False), (signal.SIGQUIT, False), (signal.SIGTERM, True)]
        for number in range(max(3, self.times())):
            worker = stage.workers.pop(0)
            newcomer = stage.add_drill_worker()
            stage.until(partial(stage.is_ready, newcomer))
            way, group = ways[number % len(ways)]
            began = time.monotonic()
            if not stage.signal_worker(worker, way, group=group).wait(30):
                worker.kill()
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.strikes += 1
        self.seen.append(f"the slowest end took {self.slowest:.1f} s")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        passed = super().passes(stage, count, result)
        return passed and result.doubled <= 4 * self.strikes and self.slowest < 30
