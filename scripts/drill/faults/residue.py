"""No fault, but very many messages, callables, batches and names of workers: what of each is kept for ever."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import psutil

from graft.config.queues import Lane
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Kind, Stage
from graft.tasks.leaks.theil_sen import theil_sen

TURNS: Final = 20  # Readings of each part.
FULL: Final = {"tasks": 700_000, "batches": 200_000, "callables": 100_000, "workers": 10_000}
BYTES: Final = 16.0  # A message may add so much, for certain, to one process or to Redis.
NOISE: Final = 1 << 20  # What a process takes or gives back without a cause that repeats itself.
NEW_KEYS: Final = 50  # Keys without an expiry that may be there afterwards, beyond those of the beginning.
RESULTS: Final = 60.0  # Seconds for which results are kept.


class Residue(Fault):
    """A million messages, 100,000 callables, 120,000 batches and 10,000 names of workers at --scale 1; an hour."""

    name = "residue"
    limit = f"no process grows by {BYTES:g} bytes a message, nor Redis by what expires never"
    by_default: ClassVar[bool] = False
    lanes: ClassVar[tuple[Lane, ...]] = ("cpu",)
    stage: ClassVar[Mapping[str, Any]] = {
        "workers": 1, "concurrency": 1, "environ": {
            "DRILL_KEEPS_PROCESSES": "1", "GRAFT_RESULT_TTL": f"{RESULTS:g}", "GRAFT_ATTEMPTS_BYTES": "200000",
        },
    }  # fmt: skip

    kind: Kind = "ours"

    @property
    def parts(self) -> dict[str, int]:
        """How many of each in one turn; stock Celery has tasks alone."""
        full = {"tasks": FULL["tasks"]} if self.kind == "stock" else FULL
        return {part: max(10, round(count * self.scale / TURNS / 10) * 10) for part, count in full.items()}

    @property
    def estimate(self) -> float:
        return 60.0 + sum(self.parts.values()) * TURNS / 300

    def play(self, kind: Kind) -> FaultResult:
        self.kind = kind
        self.readings: dict[str, list[dict[str, float]]] = {}
        with self.on(kind, lane=self.lane, **self.stage) as stage:
            words = ["-m", "graft.scripts.drill.residue", json.dumps(self.parts), str(TURNS)]
            argv, environ = stage.launch("caller", [sys.executable, *words])
            with subprocess.Popen(
                argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as caller:
                stage.callers.append(caller)  # type: ignore[arg-type]
                assert caller.stdin is not None
                assert caller.stdout is not None
                for line in caller.stdout:
                    part = line.strip()
                    reading = self._read(stage, caller.pid)
                    self.readings.setdefault(part, []).append(reading)
                    caller.stdin.write("\n")
                    caller.stdin.flush()
            self.strikes += caller.returncode == 0
            stage.restart_ended()
            return replace(self.result(stage, stage.count(), time.monotonic()), sent=self.messages)

    @property
    def messages(self) -> int:
        return TURNS * sum(count for part, count in self.parts.items() if part != "workers")

    def _read(self, stage: Stage, caller: int) -> dict[str, float]:
        """Bytes that each process has of its own, and Redis; keys that never expire."""
        (worker,) = stage.workers
        with stage.connect() as client:
            keyspace = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
            redis_memory = float(client.info("memory")["used_memory"])
        return {
            "main": float(worker.process.memory_full_info().uss),
            "pool": float(sum(each.memory_full_info().uss for each in worker.process.children())),
            "caller": float(psutil.Process(caller).memory_full_info().uss),
            "redis": redis_memory,
            "keys": float(keyspace["keys"]),
            "lasting": float(keyspace["keys"] - keyspace["expires"]),
        }

    def growth(self, part: str, name: str) -> tuple[float, float]:
        """Bytes that *name* has grown by with each message of the second half of *part*: about, and at least."""
        values = [reading[name] for reading in self.readings[part]][TURNS // 2 :]
        slope = theil_sen([float(turn) for turn in range(len(values))], values)
        each = self.parts[part]
        return slope.per_second / each, max(0.0, slope.low * (len(values) - 1) - NOISE) / (len(values) - 1) / each

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        grown = False
        for part in self.parts:
            told = {name: self.growth(part, name) for name in ("main", "pool", "caller", "redis")}
            # What expires is no residue: results, and callables by value, which are kept for a week.
            grown |= any(least > BYTES for name, (_, least) in told.items() if name != "redis" or part == "tasks")
            self.seen.append(f"{part}: " + ", ".join(f"{name} {about:+.1f}" for name, (about, _) in told.items()))
        begin, end = self.readings["tasks"][0], self.readings["end"][-1]
        left = end["lasting"] - begin["lasting"]
        self.seen.append(f"bytes for each message; {left:g} new keys without an expiry")
        return super().passes(stage, count, result) and not grown and left <= NEW_KEYS
