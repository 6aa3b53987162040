"""A network between Redis and everybody else that falls silent, or slow."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.faults.broker import HalfOpen
from graft.scripts.drill.ledger import Count
from graft.scripts.drill.stage import Stage
from graft.scripts.stack.guard import Child
from graft.scripts.stack.redis_server import StackError, free_port


class SilentStage(Stage):
    """Between Redis and everybody else is a network that can fall silent."""

    delay: ClassVar[float] = 0.0  # Seconds by which it is slow; 0 where it falls silent.
    _network: Child

    def add_drill_worker(self, concurrency: int = 2) -> Any:
        if not self.workers and not hasattr(self, "_network"):
            self._connect()
        return super().add_drill_worker(concurrency)

    def _connect(self) -> None:
        assert self.redis is not None
        port, log = free_port(), self.directory / "proxy.log"
        argv = [sys.executable, "-m", "graft.scripts.drill.proxy", str(port), str(self.redis.port)]
        argv += [str(self.delay)] if self.delay else []
        self._network = self.guard.start(argv, self.env, log=log)
        if not self.until(lambda: log.exists() and "forwards" in log.read_text(), 30):
            raise StackError("the proxy does not start")
        behind = self.env["CELERY_BROKER_URL"].replace(f":{self.redis.port}/", f":{port}/")
        self.env |= {"CELERY_BROKER_URL": behind, "CELERY_RESULT_BACKEND": behind}

    def freeze_redis(self, seconds: float) -> None:
        """Have nothing pass, in either direction, while no connection is closed."""
        with self.broken_network():
            time.sleep(seconds)

    @contextmanager
    def broken_network(self) -> Iterator[None]:
        """Have the network be silent, or slow, meanwhile."""
        os.kill(self._network.pid, signal.SIGUSR1)
        try:
            yield
        finally:
            os.kill(self._network.pid, signal.SIGUSR2)


class SlowStage(SilentStage):
    """The same, where it falls slow."""

    delay = 0.2


class SilentNetwork(HalfOpen):
    """The network between Redis and everybody else forwards nothing for a while, and closes no connection."""

    name = "silent-network"
    on: ClassVar[type[Stage]] = SilentStage


class SlowRedis(Fault):
    """Every command takes 200 ms longer for a while, as with a Redis that swaps or one in another country."""

    name = "slow-redis"
    limit = "each exactly once, workers live on, a send takes less than 5 s"
    on: ClassVar[type[Stage]] = SlowStage

    @property
    def lasts(self) -> float:
        return max(20.0, 60.0 * self.scale)

    def inject(self, stage: Stage) -> None:
        assert isinstance(stage, SlowStage)
        with stage.broken_network(), stage.connect() as client:
            began = time.monotonic()
            client.ping()
            self.strikes += time.monotonic() - began >= stage.delay
            time.sleep(self.lasts)

    def finally_(self, stage: Stage) -> None:
        self.slowest = max([*stage.waits("refused"), *stage.waits("slow")], default=0.0)
        self.seen.append(f"the slowest send took {self.slowest:.1f} s" if self.slowest else "no send took a second")

    def passes(self, stage: Stage, count: Count, result: FaultResult) -> bool:
        return super().passes(stage, count, result) and result.doubled == 0 and self.slowest < 5
