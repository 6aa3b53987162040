"""The faults: how each is caused, and its limit. Those that need another stage are in ``servers`` and ``soak``."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import psutil

from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.garbage import BROADCASTS, GARBAGE
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import VISIBILITY, Kind, Stage


class ChildKill(Fault):
    """A pool process is killed every two seconds."""

    name = "child-kill"
    limit = "0 lost, doubled at most one a kill"
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

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled <= self.strikes


class WorkerKill(Fault):
    """One of the two workers is killed with its processes, as the loss of a machine would."""

    name = "worker-kill"
    limit = "0 lost, doubled at most its prefetch, all run within lease + 10 s"

    def inject(self, stage: Stage) -> None:
        stage.workers.pop(0).kill()
        self.strikes += 1
        self._at = time.time()

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
        while time.monotonic() < deadline and not self._letters(stage):
            stage.restart_ended()
            if stage.count().starts[".poison0"] > 20:
                break
            time.sleep(0.2)

    def finally_(self, stage: Stage) -> None:
        self.letters, self.poisoned = self._letters(stage), stage.count().starts[".poison0"]
        self.seen.append(f"the poison ran {self.poisoned} times, {self.letters} dead letters")

    def _letters(self, stage: Stage) -> int:
        with stage.connect() as client:
            return int(client.zcard("graft:dead-letters:by-time"))

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return result.lost == 0 and (self.poisoned, self.letters) == (3, 1)


class PoisonWorker(Poison):
    """A task that kills the whole worker each time; a supervisor starts another."""

    name = "poison-worker"
    task = "kill_worker"
    lanes = ("cpu", "io")


class RedisKill(Fault):
    """Redis is killed and started again, every few seconds."""

    name = "redis-kill"
    limit = "workers live on, 0 lost, doubled at most 2 a restart, first run within 5 s"
    full_strikes = 14

    @property
    def lasts(self) -> float:
        return 5.0 * self.times() + 3.0

    def inject(self, stage: Stage) -> None:
        for number in range(self.times()):
            if number:
                time.sleep(3.0)
            stage.kill_redis()
            time.sleep(1.0)
            stage.start_redis()
            self.strikes += 1
            stage.restart_ended()

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        quick = result.seconds is not None and result.seconds <= 5
        return super().passes(stage, count, result) and result.doubled <= 2 * self.strikes and quick


class ConnectionsCut(Fault):
    """All connections of all clients are closed while eight long tasks run."""

    name = "connections-cut"
    limit = "8 starts, 8 ends"
    full_strikes = 4
    stage: ClassVar[Mapping[str, Any]] = {"workers": 2, "concurrency": 4}
    load: ClassVar[Mapping[str, Any]] = {"count": 8, "seconds": 12.0, "long_share": 0}

    def inject(self, stage: Stage) -> None:
        stage.until(lambda: sum(stage.count().starts[f"t{number}"] for number in range(8)) == 8, 60)
        for _ in range(self.full_strikes):
            self.strikes += bool(stage.cut_connections())
            time.sleep(2.0)

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0


class HalfOpen(Fault):
    """Redis answers nothing for a while, and no connection is closed."""

    name = "half-open"
    limit = "0 lost, runs again within 25 s, sending raises within 15 s"

    @property
    def lasts(self) -> float:
        return max(16.0, 60.0 * self.scale)

    def inject(self, stage: Stage) -> None:
        stage.freeze_redis(self.lasts)
        self.strikes += 1

    def finally_(self, stage: Stage) -> None:
        refused = _waits(stage, "refused")
        self.slowest = max([*refused, *_waits(stage, "slow")], default=0.0)
        self.seen.append(f"{len(refused)} sends refused, the slowest send took {self.slowest:.1f} s")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        quick = result.seconds is not None and result.seconds <= 25
        return super().passes(stage, count, result) and quick and self.slowest <= 15


class LongTasks(Fault):
    """Tasks that run, or wait for their time, three times as long as a message may be held."""

    name = "longer-than-lease"
    limit = "each exactly once"
    full_strikes = 200
    load: ClassVar[Mapping[str, Any]] = {"count": 4, "seconds": 3 * VISIBILITY, "long_share": 0, "prefix": "long"}

    def inject(self, stage: Stage) -> None:
        count = self.times() if self.scale < 1 else self.full_strikes
        later: dict[str, Any] = {
            "count": max(10, count),
            "rate": 200.0,
            "long_share": 0,
            "prefix": "eta",
            "countdown": 3 * VISIBILITY,
        }
        stage.run(later)
        self.strikes += 1

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0


class ResultsDown(Fault):
    """The Redis that keeps the results is down while tasks end."""

    name = "results-down"
    limit = "every result there, none doubled"
    stage: ClassVar[Mapping[str, Any]] = {"results_apart": True}
    load: ClassVar[Mapping[str, Any]] = {"task": "answer", "rate": 20.0, "ids": True, "seconds": 0.05}

    @property
    def tasks(self) -> int:
        return max(60, round(1000 * self.scale))

    def play(self, kind: Kind) -> FaultResult:
        with Stage(kind, lane=self.lane, **self.stage) as stage:
            assert stage.results is not None
            # Sent before the outage: what is measured is whether the workers keep what they made.
            stage.run({"count": self.tasks, **self.load, "rate": 500.0})
            stage.results.kill()
            self.strikes += 1
            time.sleep(max(5.0, 60.0 * self.scale))
            stage.results.start()
            healed = time.time()
            stage.settle()
            self._look(stage)
            return self.result(stage, stage.count(), healed)

    def _look(self, stage: Stage) -> None:
        from redis import Redis

        assert stage.results is not None
        with Redis.from_url(stage.results.url) as client:
            sent = sorted(stage.count().sent)
            keys = [f"celery-task-meta-drill-{label}" for label in sent]
            stage.until(lambda: client.exists(*keys) == len(keys), 30)
            self.missing = len(keys) - int(client.exists(*keys))
        self.seen.append(f"{self.missing} results missing")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and self.missing == 0 and result.doubled == 0


class Chords(Fault):
    """The process that runs a part dies between its result and the count, with the claim, or after sending the body."""

    name = "chords"
    limit = "every body exactly once, within 60 s"
    full_strikes = 20
    lanes = ("cpu",)  # It ends the process that runs a part, which is the worker itself in the other.

    def play(self, kind: Kind) -> FaultResult:
        from graft.scripts.drill.failpoints import POINTS

        results = []
        for point in POINTS:
            with Stage(kind, worker_environ={"DRILL_FAILPOINT": point}) as stage:
                if kind == "ours":
                    stage.add_beat()
                began = time.time()
                stage.run({"chords": self.times(), "prefix": point}, timeout=120)
                stage.settle(quiet=60.0)
                count = stage.count()
                self.strikes = count.died
                bodies = sum(count.ends[label] for label in count.sent)
                self.seen.append(f"{point}: {bodies} of {len(count.sent)}")
                results.append(self.result(stage, count, began))
        return replace(
            results[-1],
            passed=all(result.passed for result in results),
            seconds=None,
            **{
                name: sum(getattr(result, name) for result in results)
                for name in ("sent", "lost", "doubled", "ended", "strikes")
            },
        )

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0


class Full(Fault):
    """Redis is at maxmemory and refuses writes."""

    name = "maxmemory"
    limit = "0 lost, clear errors, workers alive"

    @property
    def lasts(self) -> float:
        return max(6.0, 30.0 * self.scale)

    def inject(self, stage: Stage) -> None:
        with stage.connect() as client:
            client.config_set("maxmemory", 1)
            time.sleep(self.lasts)
            client.config_set("maxmemory", 0)
        self.strikes += len(_waits(stage, "refused")) > 0

    def finally_(self, stage: Stage) -> None:
        refused = _waits(stage, "refused")
        self.seen.append(f"{len(refused)} sends refused, the slowest after {max(refused, default=0.0):.1f} s")


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


class BadMessages(Fault):
    """Five messages in a hundred are none: garbage, forged pickles, missing parts, unknown tasks."""

    name = "bad-messages"
    limit = "every good task once, every bad message kept, 0 restarts, 0 reconnects"
    # A signature would be missing from all of them; here each is to be refused for what else is wrong with it.
    stage: ClassVar[Mapping[str, Any]] = {"environ": {"GRAFT_SIGNING": "sign"}}

    def inject(self, stage: Stage) -> None:
        wanted = max(len(GARBAGE), self.tasks // 20)
        with stage.connect() as client:
            for number in range(wanted):
                client.lpush("default", GARBAGE[number % len(GARBAGE)])
                if number % 4 == 0:
                    client.publish("/0.celery.pidbox", BROADCASTS[number // 4 % len(BROADCASTS)])
                self.strikes += 1
                time.sleep(0.05)
                stage.restart_ended()

    def finally_(self, stage: Stage) -> None:
        with stage.connect() as client:
            stage.until(lambda: client.llen("graft:quarantine") >= min(500, self.strikes), 10)
            self.kept = int(client.llen("graft:quarantine"))
        self.reconnects = sum(
            worker.log.read_text(errors="replace").count("Connection to broker lost") for worker in stage.workers
        )
        self.seen.append(f"{self.kept} of {self.strikes} kept, {self.reconnects} reconnects")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        kept = self.kept >= min(500, self.strikes)
        return super().passes(stage, count, result) and result.doubled == 0 and kept and not self.reconnects


class BadMessagesThreads(BadMessages):
    """The same for workers of threads."""

    name = "bad-messages-threads"
    lanes = ("cpu",)
    stage: ClassVar[Mapping[str, Any]] = {**BadMessages.stage, "pool": "threads"}
    lanes = ("cpu",)


class BadMessagesSolo(BadMessages):
    """The same for workers that run one task at a time, in their main process."""

    name = "bad-messages-solo"
    lanes = ("cpu",)
    stage: ClassVar[Mapping[str, Any]] = {**BadMessages.stage, "pool": "solo"}
    lanes = ("cpu",)
    load: ClassVar[Mapping[str, Any]] = {"long_share": 0, "rate": 50.0}


def _waits(stage: Stage, kind: str) -> list[float]:
    """Seconds of each send of this *kind*: ``refused``, or successful but ``slow``."""
    lines = stage.ledger.read_text(errors="replace").splitlines()
    return [float(line.split(" ")[1].rpartition(":")[2]) for line in lines if line.startswith(f"{kind} ")]
