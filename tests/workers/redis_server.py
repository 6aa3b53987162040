"""A private Redis and real workers of ``tests.workers.sample_app``, for the tests of what happens when either fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from graft.scripts.stack.redis_server import find
from tests import roles
from tests.stack import TESTED_POOL

ROOT = Path(__file__).resolve().parents[2]


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Return as soon as *holds* answers true; fail the test after *seconds*. A lost connection counts as no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except redis.ConnectionError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"still not true after {seconds:g} s: {what}")


class RedisServer:
    """One redis-server with an append-only file, on a free port; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = folder / "redis.sock"
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self.try_to_start("--port", str(self.port)), "redis-server does not start"

    def try_to_start(self, *options: str) -> bool:
        """Start with *options*; False when this build does not know one of them."""
        command = [
            str(find(os.environ)),
            *options,
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--unixsocket",
            str(self.socket),
        ]
        command += ["--appendonly", "yes", "--appendfsync", "always", *roles.options()]
        self._process = process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            wait_until(lambda: process.poll() is not None or client.ping(), "Redis answers")
        return process.poll() is None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.kill()


class Worker:
    """A worker process, the ledger that its tasks write, and its log. ``stock=True`` is Celery as it comes."""

    def __init__(
        self, server: RedisServer, pool: str = "prefork", db: int = 0, stock: bool = False, vt: float = 30,
        signing: str = "sign",
    ) -> None:  # fmt: skip
        self.name = f"{'stock' if stock else 'graft'}-{pool}-{db}"
        self.server, self.db, self.stock = server, db, stock
        self.ledger = server.folder / f"{self.name}.ledger"
        self.log = server.folder / f"{self.name}.log"
        self.environment = {
            **os.environ,
            "GRAFT_POOL": TESTED_POOL,
            "GRAFT_VISIBILITY_TIMEOUT": str(vt),
            "SAMPLE_LEDGER": str(self.ledger),
            # What is wrong with a message besides its signature is what these tests are about, unless they say so.
            "GRAFT_SIGNING": signing,
            "SAMPLE_STOCK": "1" if stock else "",
            "PYTHONWARNINGS": "ignore",
        }
        self.queue = redis.Redis(port=server.port, db=db, socket_timeout=5)
        self._options = ["-P", pool, "-c", "2", "-Q", "default", "-n", f"{self.name}@test", "-l", "info"]

    def env_of(self, user: str) -> dict[str, str]:
        """The environment of a process that is *user* to Redis; Celery as it comes has no rules to keep to."""
        login = roles.login("admin" if self.stock else user)
        address = f"redis://{login}127.0.0.1:{self.server.port}/{self.db}"
        return {**self.environment, **dict.fromkeys(roles.ADDRESSES, address)}

    def __enter__(self) -> Self:
        self.ledger.touch()
        app = [sys.executable, "-m", "celery", "-A", "tests.workers.sample_app"]
        command = [*app, "worker", *self._options, "--without-gossip", "--without-mingle"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.env_of("worker"), stdout=log, stderr=log)
        return self

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.said("ready."), f"{self.name} is ready")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.log.read_text()[-12_000:])
        self.queue.close()
        if self.is_alive():
            self.process.send_signal(signal.SIGKILL)  # Its pool processes die with it (pdeathsig).
        self.process.wait()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def answers_to_its_name(self) -> bool:
        command = [sys.executable, "-m", "celery", "-A", "tests.workers.sample_app", "inspect", "ping", "-t", "10"]
        ping = [*command, "-d", f"{self.name}@test"]
        return subprocess.run(ping, cwd=ROOT, env=self.env_of("operator"), stdout=subprocess.DEVNULL).returncode == 0

    def said(self, text: str) -> int:
        return self.log.read_text(errors="replace").count(text)

    def send(self, *labels: str, seconds: float = 0, **options: Any) -> None:
        """Queue one run of ``sample.note`` for each of *labels*, by a process of its own: as a caller would.

        One for later (``countdown``) is held by the worker, as by Celery's.
        """
        code = (
            "import json, sys; from tests.workers.sample_app import note\n"
            "labels, seconds, options = json.loads(sys.argv[1])\n"
            "for label in labels: note.apply_async((label, seconds), **options)"
        )
        argument = json.dumps([labels, seconds, options])
        environ = {**self.env_of("caller"), "GRAFT_DUE_AFTER": "0"}
        subprocess.run([sys.executable, "-c", code, argument], cwd=ROOT, env=environ, check=True)

    def events(self) -> Counter[tuple[str, str]]:
        """How often each task started and ended: ``{("start", label): 1, …}``."""
        return Counter((kind, label) for kind, label in map(str.split, self.ledger.read_text().splitlines()))

    def has(self, kind: str, *labels: str) -> bool:
        events = self.events()
        return all(events[kind, label] for label in labels)
