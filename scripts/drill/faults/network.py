"""A network between Redis and everybody else that falls silent."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any, ClassVar

from graft.scripts.drill.faults.broker import HalfOpen
from graft.scripts.drill.stage import Stage
from graft.scripts.stack.guard import Child
from graft.scripts.stack.redis_server import StackError, free_port


class SilentStage(Stage):
    """Between Redis and everybody else is a network that can fall silent."""

    _network: Child

    def add_drill_worker(self, concurrency: int = 2) -> Any:
        if not self.workers and not hasattr(self, "_network"):
            self._connect()
        return super().add_drill_worker(concurrency)

    def _connect(self) -> None:
        assert self.redis is not None
        port, log = free_port(), self.directory / "proxy.log"
        argv = [sys.executable, "-m", "graft.scripts.drill.proxy", str(port), str(self.redis.port)]
        self._network = self.guard.start(argv, self.env, log=log)
        if not self.until(lambda: log.exists() and "forwards" in log.read_text(), 30):
            raise StackError("the proxy does not start")
        behind = self.env["CELERY_BROKER_URL"].replace(f":{self.redis.port}/", f":{port}/")
        self.env |= {"CELERY_BROKER_URL": behind, "CELERY_RESULT_BACKEND": behind}

    def freeze_redis(self, seconds: float) -> None:
        """Have nothing pass, in either direction, while no connection is closed."""
        os.kill(self._network.pid, signal.SIGUSR1)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self._network.pid, signal.SIGUSR2)


class SilentNetwork(HalfOpen):
    """The network between Redis and everybody else forwards nothing for a while, and closes no connection."""

    name = "silent-network"
    on: ClassVar[type[Stage]] = SilentStage
