"""The soak: hours of load with a random fault every minute, while growth is measured. Runs only when named."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import fmean, median
from typing import Any, ClassVar, Final

import psutil
import redis

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage
from graft.tasks.leaks.theil_sen import theil_sen, thin

HOURS: Final = 2.0
RATE: Final = 20.0  # Tasks a second: two thirds of what two workers of two processes can do.
GROWS: Final = 0.1  # A gauge grows when it is sure to, and by more than this share of itself over the measured part.


class Soak(Fault):
    """Two hours of load, in which every minute something else breaks."""

    name = "soak"
    limit = "0 lost, at most 0.1 % doubled, no growth of memory, files, connections, keys"
    full_strikes = 120
    by_default: ClassVar[bool] = False
    load: ClassVar[Mapping[str, Any]] = {"rate": RATE}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gauges: dict[str, tuple[list[float], list[float]]] = {}

    @property
    def lasts(self) -> float:
        return max(90.0, HOURS * 3600.0 * self.scale)

    @property
    def every(self) -> float:
        """Seconds between two faults."""
        return 60.0 if self.scale >= 0.1 else 10.0

    @property
    def tasks(self) -> int:
        return round(self.lasts * RATE)

    @property
    def estimate(self) -> float:
        return 30.0 + self.lasts

    def inject(self, stage: Stage) -> None:
        end = time.monotonic() + self.lasts - self.every
        ways: tuple[Callable[[Stage], object], ...] = (
            _child,
            _worker,
            _redis,
            Stage.cut_connections,
            _silence,
            _replace,
        )
        while time.monotonic() < end:
            random.choice(ways)(stage)
            self.strikes += 1
            fault_over = time.monotonic() + self.every
            while time.monotonic() < fault_over:
                time.sleep(self.every / 5)
                stage.restart_ended()
                self._look(stage)

    def _look(self, stage: Stage) -> None:
        """One sample of everything that should not grow."""
        with suppress(psutil.NoSuchProcess, redis.RedisError), stage.connect() as client:
            processes = [worker.process for worker in stage.workers]
            now = {
                "memory": fmean(process.memory_info().rss for process in processes),
                "files": fmean(process.num_fds() for process in processes),
                "connections": float(client.info("clients")["connected_clients"]),
                "keys": _lasting(client),
            }
            for name, value in now.items():
                times, values = self._gauges.setdefault(name, ([], []))
                times.append(time.monotonic())
                values.append(value)

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        growing = [name for name, (times, values) in self._gauges.items() if grows(times, values)]
        samples = min((len(values) for _, values in self._gauges.values()), default=0)
        self.seen.append(f"{samples} samples, growing: {', '.join(growing) or 'nothing'}")
        few = result.doubled <= max(0.001 * result.sent, 2.0 * self.strikes if self.scale < 1 else 0.0)
        return super().passes(stage, count, result) and few and samples >= 5 and not growing


def _lasting(client: Any) -> float:
    """Keys that never expire; the others come and go within the hour."""
    database: dict[str, int] = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
    return float(database["keys"] - database["expires"])


def grows(times: list[float], values: list[float]) -> bool:
    """Whether *values* are sure to grow over the second half of *times*, by more than a tenth."""
    half = len(times) // 2
    if len(times) - half < 3:
        return False
    late, counted = thin(times[half:], values[half:])
    growth = theil_sen(late, counted).low * (late[-1] - late[0])
    return growth > GROWS * max(median(counted), 1.0)


def _child(stage: Stage) -> None:
    with suppress(psutil.NoSuchProcess, IndexError):
        random.choice(stage.pool_processes()).kill()


def _worker(stage: Stage) -> None:
    worker = stage.workers.pop(0)
    worker.kill()
    stage.add_drill_worker()


def _redis(stage: Stage) -> None:
    stage.kill_redis()
    time.sleep(1.0)
    stage.start_redis()


def _silence(stage: Stage) -> None:
    stage.freeze_redis(5.0)


def _replace(stage: Stage) -> None:
    worker = stage.workers.pop(0)
    stage.add_drill_worker()
    worker.stop(30.0)
