"""A real Redis and real workers for tests: what ``LocalStack`` has, and what only tests need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis as redis_py

from graft.config import acl, redis_client
from graft.config.queues import Lane
from graft.config.settings import Settings
from graft.scripts import redis_server
from graft.scripts.local_stack import LocalStack
from graft.scripts.services import Worker

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"

# Of the machine that the tests run on: none of its deployments may be touched or change what is tested.
FOREIGN = ("CELERY_", "GRAFT_", "FLOWER_")
ADDRESSES = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
SETTINGS = {"GRAFT_VISIBILITY_TIMEOUT": "4"}  # What a lost worker held is delivered again after 4 s.

# GRAFT_TEST_ACL=operator pytest …: workers are Redis's user "worker", what the tests do as callers is done as the user
# named. Only what tests look up and break themselves is done as an administrator.
CALLER = os.environ.get("GRAFT_TEST_ACL", "")


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


def version_of(program: str | Path) -> tuple[int, ...]:
    """Which Redis *program* is."""
    told = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", told)
    assert found, told
    return tuple(map(int, found.groups()))


def with_users(folder: Path) -> None:
    """Have the private servers of this process know the users of every role, with their names as passwords."""
    lines = acl.users({name: name for name in ("admin", *acl.roles(()))}, (), version_of(redis_server.find(os.environ)))
    everybody = "user default on nopass allkeys allchannels +@all"
    path = folder / "users.acl"
    path.write_text("\n".join([everybody, *(line for line in lines if "user default" not in line)]) + "\n")
    redis_server.CONFIGURATION += f'aclfile "{path}"\n'


class Stack(LocalStack):
    """A stack whose workers import ``tests.samples``, and that can be hurt and healed."""

    def __init__(self, lanes: Mapping[Lane, int], environ: Mapping[str, str]) -> None:
        super().__init__(lanes, pythonpath=[ROOT, EXAMPLES], environ=environ)

    def url_of(self, role: str) -> str:
        """The address of the private Redis for the user *role*; its name is its password."""
        assert self.redis is not None
        return f"redis://{role}:{role}@127.0.0.1:{self.redis.port}/0"

    def start(self) -> None:
        super().start()
        if CALLER and self.redis:
            self.env |= dict.fromkeys(ADDRESSES, self.url_of(CALLER))

    def connect(self) -> redis_py.Redis:
        """A client of the stack's Redis that may do everything."""
        if not CALLER or self.redis is None:
            return super().connect()
        client: redis_py.Redis = redis_client.connect(
            Settings(broker_url=self.redis.url, result_backend=self.redis.url)
        )
        return client

    def add_worker(self, lane: Lane, concurrency: int, **options: Any) -> Worker:
        """One more worker, which also knows the tasks in ``tests/workers/aio_samples.py``."""
        if CALLER and self.redis:
            options["env"] = {**dict.fromkeys(ADDRESSES, self.url_of("worker")), **(options.get("env") or {})}
        return super().add_worker(lane, concurrency, **{"include": ("tests.workers.aio_samples",), **options})

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
