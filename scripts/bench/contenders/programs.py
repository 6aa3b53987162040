"""Programs as somebody starts them: a worker until it says that it is ready, and the help of a command.

Nothing is sent. What counts beside the time is processor time up to that moment, which others on the machine disturb
less, and the memory of a worker that has nothing to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final

from graft.scripts.bench.contenders.base import Contender
from graft.scripts.bench.measuring import cpu_seconds, pss

READY: Final = " ready."
PATIENCE: Final = 60.0
SETTLES: Final = 3.0  # Seconds in which each step of a worker has done what it does first.


class StockPrograms(Contender):
    name = "celery-programs"
    title = "stock Celery's programs"
    needs = ("celery",)
    shapes = frozenset({"start"})
    functions = frozenset({"help", "worker", "io-worker"})
    app: ClassVar[str] = "graft.scripts.bench.peers.stock_app"
    commands: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "help": ("inspect", "--help"),
        "worker": ("worker", "-P", "prefork"),
        "io-worker": ("worker", "-P", "solo"),
    }

    def started(self, function: str) -> Mapping[str, float]:
        argv = [sys.executable, "-m", "celery", "-A", self.app, *self.commands[function]]
        if function == "help":
            return self._ended(argv)
        return self._ready([*argv, "-l", "INFO", "-c", str(self.setup.concurrency), "--without-mingle"])

    def _ended(self, argv: list[str]) -> dict[str, float]:
        before, began = cpu_seconds([os.getpid()]), time.perf_counter()
        subprocess.run(argv, env=self.environ, stdout=subprocess.DEVNULL, check=True)
        return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds([os.getpid()]) - before}

    def _ready(self, argv: list[str]) -> dict[str, float]:
        with TemporaryDirectory() as folder:
            log, began = Path(folder) / "log", time.perf_counter()
            with log.open("w") as said, subprocess.Popen(argv, env=self.environ, stdout=said, stderr=said) as worker:
                try:
                    while READY not in log.read_text():
                        if worker.poll() is not None or time.perf_counter() - began > PATIENCE:
                            raise RuntimeError(f"a worker was not ready:\n{log.read_text()[-2000:]}")
                        time.sleep(0.005)
                    found = {"seconds": time.perf_counter() - began, "cpu": cpu_seconds([worker.pid])}
                    time.sleep(SETTLES)
                    return {**found, "idle_memory": float(pss([worker.pid]))}
                finally:
                    worker.terminate()


class GraftPrograms(StockPrograms):
    name = "graft-programs"
    title = "celery-graft's programs"
    app = "graft"
    commands: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "help": ("doctor", "--help"),
        "worker": ("worker", "-P", "prefork"),
        "io-worker": ("worker", "-P", "custom", "-Q", "io"),
    }

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "CELERY_CUSTOM_WORKER_POOL": "graft.workers.aio_pool:TaskPool"}


class GraftPreforkPrograms(GraftPrograms):
    """With Celery's own pool."""

    name = "graft-prefork-programs"
    title = "the same, GRAFT_POOL=prefork"
    functions = frozenset({"worker"})

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "GRAFT_POOL": "prefork"}
