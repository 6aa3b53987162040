"""A Redis that is lost, cut off, silent, full, or without the results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Kind, Stage


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
        refused = stage.waits("refused")
        self.slowest = max([*refused, *stage.waits("slow")], default=0.0)
        self.seen.append(f"{len(refused)} sends refused, the slowest send took {self.slowest:.1f} s")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        quick = result.seconds is not None and result.seconds <= 25
        return super().passes(stage, count, result) and quick and self.slowest <= 15


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
            healed = time.monotonic()
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
        self.strikes += len(stage.waits("refused")) > 0

    def finally_(self, stage: Stage) -> None:
        refused = stage.waits("refused")
        self.seen.append(f"{len(refused)} sends refused, the slowest after {max(refused, default=0.0):.1f} s")
