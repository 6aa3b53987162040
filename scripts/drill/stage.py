"""The stage of a fault: a private Redis, two workers, a caller, and the ledger; ours or stock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import redis

from graft.config.queues import Lane
from graft.scripts.drill.ledger import Count, read
from graft.scripts.stack.guard import Child
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.redis_server import RedisServer, find
from graft.scripts.stack.services import Service, Worker

Kind = Literal["ours", "stock"]

VISIBILITY = 5.0
QUIET = 20.0  # Nothing has happened for so long: what has not ended by then will not.
APP = "graft.scripts.drill.app"


class Stage(LocalStack):
    """One deployment for one fault.

    Args:
        kind: whose code runs.
        lane: which kind of worker runs it, where it is ours: prefork, or one event loop.
        workers: how many, of *concurrency* pool processes each.
        results_apart: a second Redis for the results.
        environ: more variables for all its processes.
        worker_environ: and for its workers alone.
    """

    def __init__(
        self, kind: Kind, *, lane: Lane = "cpu", workers: int = 2, concurrency: int = 2, pool: str = "prefork",
        results_apart: bool = False, environ: Mapping[str, str] | None = None,
        worker_environ: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        foreign = ("CELERY_", "GRAFT_", "DRILL_")
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(foreign) or name == "GRAFT_POOL"
        }
        own = {
            "GRAFT_VISIBILITY_TIMEOUT": str(VISIBILITY),
            "GRAFT_LOST_AFTER": "5",
            "PYTHONWARNINGS": "ignore",
            **({"DRILL_STOCK": "1"} if kind == "stock" else {}),
            **(environ or {}),
        }
        if lane == "io" and kind == "ours":
            own |= {"CELERY_CUSTOM_WORKER_POOL": "graft.workers.aio_pool:TaskPool", "DRILL_LANE": "io"}
            pool = "custom"
        super().__init__({}, environ={**inherited, **own})
        self.kind = kind
        self.pool = pool
        self.results: RedisServer | None = None
        self.ended: list[str] = []  # Workers that ended by themselves.
        self._numbers = (workers, concurrency)
        self._for_workers = dict(worker_environ or {})
        self._results_apart = results_apart
        self._callers: list[subprocess.Popen[bytes]] = []
        self._canaries = 0

    def start(self) -> None:
        super().start()
        if self._results_apart:
            self.results = RedisServer(self.guard, find(self.env), self.env, name="results")
            self.results.start()
            self.env["CELERY_RESULT_BACKEND"] = self.results.url
        self.env["DRILL_LEDGER"] = str(self.directory / "ledger")
        self.env["DRILL_HISTORY"] = str(self.directory / "history")  # What actors saw of what they share.
        workers, concurrency = self._numbers
        for _ in range(workers):
            self.add_drill_worker(concurrency)

    def add_drill_worker(self, concurrency: int = 2) -> Worker:
        """Start one more worker of this kind; returns before it works."""
        self._workers_made += 1
        name = f"{self.kind}{self._workers_made}@drill-{self._token}"
        arguments = ["worker", "-n", name, "-P", self.pool, "-c", str(concurrency), "--without-gossip"]
        log = self.directory / f"worker{self._workers_made}.log"
        argv = [sys.executable, "-m", "celery", "-A", APP, *arguments, "--without-mingle", "-l", "INFO"]
        child = self.guard.start(*self.launch(f"worker{self._workers_made}", argv, self._for_workers), log=log)
        worker = Worker(name, "cpu", log, child)
        self.workers.append(worker)
        return worker

    def add_beat(self) -> None:
        """Have the periodic tasks run, and ``drill.tick`` every two seconds."""
        argv = [sys.executable, "-m", "celery", "-A", APP, "beat", "-s", str(self.directory / "beat-schedule")]
        log = self.directory / "beat.log"
        child = self.guard.start(*self.launch("beat", [*argv, "--pidfile=", "-l", "INFO"]), log=log)
        self.beat = Service("beat", log, child)

    def launch(
        self, name: str, argv: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """How the process *name* is started (``worker3``, ``beat``, ``caller``): its arguments and its environment.

        A fault that lies between a process and its machine overrides this.
        """
        return list(argv), {**self.env, **(environ or {})}

    def wait_ready(self, timeout: float = 60.0, services: Any = None) -> None:
        """Wait until every worker has said that it is ready, and a task has been there and back."""
        self.until(lambda: all(self.is_ready(worker) for worker in self.workers), timeout)
        self.canary(timeout)

    @staticmethod
    def is_ready(worker: Worker) -> bool:
        """True once the worker has logged that it is ready."""
        return "ready." in worker.log.read_text(errors="replace")

    def canary(self, timeout: float = 60.0) -> bool:
        """Send one small task; whether it ended in time."""
        self._canaries += 1
        label = f".canary{self._canaries}-"
        self.run({"count": 1, "prefix": label, "long_share": 0})
        return self.until(lambda: self.count().ends[label + "0"] > 0, timeout)

    # ---- the caller -------------------------------------------------------------------------------------------------

    def produce(self, **what: Any) -> None:
        """Have a caller send tasks (produce.py), and go on."""
        self._callers.append(self._call(what))

    def run(self, what: Mapping[str, Any], timeout: float = 60.0) -> None:
        """Have a caller send tasks, and wait until it has."""
        caller = self._call(what)
        try:
            caller.wait(timeout)
        except subprocess.TimeoutExpired:
            caller.kill()
            caller.wait()

    def _call(self, what: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        argv, environ = self.launch("caller", [sys.executable, "-m", "graft.scripts.drill.produce", json.dumps(what)])
        with (self.directory / "caller.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def callers(self) -> list[subprocess.Popen[bytes]]:
        return self._callers

    @property
    def is_sending(self) -> bool:
        return any(caller.poll() is None for caller in self._callers)

    # ---- looking ----------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Path:
        return Path(self.env["DRILL_LEDGER"])

    def count(self) -> Count:
        return read(self.ledger)

    def waits(self, kind: str) -> list[float]:
        """Seconds of each send of this *kind*: ``refused``, or successful but ``slow``."""
        lines = self.ledger.read_text(errors="replace").splitlines()
        return [float(line.split(" ")[1].rpartition(":")[2]) for line in lines if line.startswith(f"{kind} ")]

    def said(self, text: str) -> int:
        """How often the logs of the workers that run have *text*."""
        return sum(worker.log.read_text(errors="replace").count(text) for worker in self.workers)

    def quarantined(self) -> int:
        """How many messages were moved to the quarantine."""
        with self.connect() as client:
            return int(client.llen("graft:quarantine"))

    def letters(self) -> int:
        """How many dead letters are kept, without periodic tasks that came too late and are dropped on purpose."""
        with self.connect() as client:
            return sum(json.loads(text)["reason"] != "expired" for text in client.hvals("graft:dead-letters"))

    def until(self, holds: Callable[[], Any], timeout: float = 60.0) -> bool:
        """Poll until *holds*; False after *timeout* seconds. A Redis that does not answer means not yet."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if holds():
                    return True
            except redis.RedisError:
                pass
            time.sleep(0.05)
        return False

    def settle(self, timeout: float = 240.0, quiet: float | None = None) -> float:
        """Wait until everything sent has ended, or nothing has happened for long; the monotonic time when it was so."""
        deadline = time.monotonic() + timeout
        size, changed = -1, time.monotonic()
        while time.monotonic() < deadline:
            self.restart_ended()
            now_size = self.ledger.stat().st_size if self.ledger.exists() else 0
            if now_size != size:
                size, changed = now_size, time.monotonic()
            if not self.is_sending and not self.count().lost:
                break
            if not self.is_sending and time.monotonic() - changed > (quiet or QUIET):
                break
            time.sleep(0.1)
        return time.monotonic()

    def restart_ended(self) -> None:
        """Record workers that have ended by themselves, and start others, as a supervisor does."""
        for worker in tuple(self.workers):
            if worker.status is not None:
                self.ended.append(worker.name)
                self.workers.remove(worker)
                self.add_drill_worker(self._numbers[1])

    def pool_processes(self) -> list[psutil.Process]:
        found = []
        for worker in self.workers:
            try:
                found += worker.process.children()
            except psutil.NoSuchProcess:
                continue
        return found

    # ---- breaking ---------------------------------------------------------------------------------------------------

    def cut_connections(self) -> int:
        """Close every connection to Redis but this one; how many there were."""
        with self.connect() as client:
            return sum(
                int(client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
                for kind in ("normal", "pubsub")
            )

    def freeze_redis(self, seconds: float) -> None:
        """Have Redis answer nothing while its connections stay open, as a network that drops packets does."""
        assert self.redis is not None
        assert self.redis.pid is not None
        os.kill(self.redis.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self.redis.pid, signal.SIGCONT)

    def signal_worker(self, worker: Worker, number: int, *, group: bool = False) -> Child:
        worker._child.signal(number, group=group)
        return worker._child

    def stop(self, grace: float = 3.0) -> None:
        for caller in self._callers:
            caller.kill()
            caller.wait()
        super().stop(grace)
