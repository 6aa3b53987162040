"""A real Redis and real workers for tests: what ``LocalStack`` has, and what only tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis as redis_py

from graft.config import redis_client
from graft.config.queues import Lane
from graft.config.settings import Settings
from graft.scripts.stack.local_stack import LocalStack
from graft.scripts.stack.services import GRACE, Service, Worker
from tests import roles

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"

# Of the machine that the tests run on: none of its deployments may be touched or change what is tested.
FOREIGN = ("CELERY_", "GRAFT_", "FLOWER_")
# What a lost worker held is delivered again after 4 s; the tests of the old proof of concept want its routes.
SETTINGS = {"GRAFT_VISIBILITY_TIMEOUT": "4", "GRAFT_POC_TASKS": "true"}
# TESTED_POOL=prefork pytest tests/hardened tests/workers runs the same with Celery's own pool.
TESTED_POOL = os.environ.get("TESTED_POOL", "direct")
if TESTED_POOL != "direct":
    SETTINGS["GRAFT_POOL"] = TESTED_POOL


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* without any deployment, with the settings of the tests."""
    return {name: value for name, value in environ.items() if not name.startswith(FOREIGN)} | SETTINGS


def wait_until(condition: Callable[[], object], timeout: float = 30.0, what: str = "") -> None:
    """Poll until *condition* holds; fails after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.02)


class Stack(LocalStack):
    """A stack whose workers import ``tests.samples``, and that can be hurt and healed."""

    def __init__(self, lanes: Mapping[Lane, int], environ: Mapping[str, str], **services: bool) -> None:
        super().__init__(lanes, pythonpath=[ROOT, EXAMPLES], environ=environ, **services)

    def start(self) -> None:
        super().start()
        roles.enter(self)

    def stop(self, grace: float = GRACE) -> None:
        roles.leave(self)
        super().stop(grace)

    def connect(self) -> redis_py.Redis:
        """A client of the stack's Redis that may do everything."""
        if not roles.DEFAULT or self.redis is None:
            return super().connect()
        own = Settings(broker_url=self.redis.url, result_backend=self.redis.url)
        client: redis_py.Redis = redis_client.connect(own)
        return client

    def add_worker(self, lane: Lane, concurrency: int, **options: Any) -> Worker:
        """One more worker, which also knows the tasks in ``tests/workers/aio/samples.py``."""
        options["env"] = {**roles.addresses(self, "worker"), **(options.get("env") or {})}
        return super().add_worker(lane, concurrency, **{"include": ("tests.workers.aio.samples",), **options})

    def env_of(self, role: str) -> dict[str, str]:
        """The environment of a process that the test itself starts, and that is *role* to Redis."""
        return {**self.env, **roles.addresses(self, role)}

    def _start_service(self, name: str, arguments: list[str], env: Mapping[str, str] | None = None) -> Service:
        role = {"flower": "operator"}.get(name, name)
        return super()._start_service(name, arguments, {**roles.addresses(self, role), **(env or {})})

    @property
    def worker(self) -> Worker:
        """The first worker that runs."""
        return next(worker for worker in self.workers if worker.status is None)

    @contextmanager
    def another_worker(
        self, lane: Lane = "cpu", concurrency: int = 2, env: Mapping[str, str] | None = None
    ) -> Iterator[Worker]:
        """One more worker, reading every queue, while the block lasts."""
        worker = self.add_worker(lane, concurrency, env=env)
        try:
            self.wait_ready(services=[worker])
            yield worker
        finally:
            worker.stop()
            self.workers.remove(worker)

    def heal(self, lanes: Mapping[Lane, int]) -> None:
        """Have Redis and one worker for each lane, again where the last test broke them."""
        if self.redis and self.redis.pid is None:
            self.start_redis()
        self.workers = [worker for worker in self.workers if worker.status is None]
        for lane in lanes.keys() - {worker.lane for worker in self.workers}:
            self.add_worker(lane, lanes[lane], every_queue=len(lanes) == 1)
        self.wait_ready()


def run_among_deaths(stack: Stack, code: str, lanes: Mapping[Lane, int]) -> tuple[str, int]:
    """Run a program beside a supervisor, who starts the worker again when it has died: what it printed, and deaths."""
    deaths = 0
    with subprocess.Popen(
        [sys.executable, "-c", code], env=stack.env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            while program.poll() is None:
                if stack.workers[0].status is not None:
                    deaths += 1
                    stack.heal(lanes)
                time.sleep(0.1)
        finally:
            program.kill()
            output, _ = program.communicate()
    return output, deaths


def run_python(
    stack: LocalStack, code: str | Path, timeout: float = 60.0, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, given as its text or its file, as a client of *stack* in a process of its own."""
    program = [str(code)] if isinstance(code, Path) else ["-c", code]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**stack.env, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
