"""Runs the processes of ``tests/projects/shop`` on a private Redis, hardened or as stock Celery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.stack import ROOT, clean_environ, wait_until

WAIT = 60.0
SHOP = "tests.projects.shop"


class Project:
    """The shop's processes: hardened, or with ``stock=True`` as Celery comes."""

    def __init__(self, url: str, folder: Path, app: str = SHOP, **environ: str) -> None:
        self.url, self.folder, self.app = url, folder, app
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.env = {**clean_environ(os.environ), "SHOP_REDIS": url, "SHOP_LEDGER": str(self.ledger), **environ}
        self.env |= {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()  # Pool processes die with it.
            process.wait()
        if kind is not None:
            for log in self.folder.glob("*.log"):
                print(log.name, log.read_text()[-6000:], sep="\n")

    def environ(self, stock: bool) -> dict[str, str]:
        return self.env if stock else {**self.env, "HARDEN": "1"}

    def start(self, *command: str, name: str, stock: bool = False, **environ: str) -> subprocess.Popen[bytes]:
        """Start ``celery -A shop`` with *command*; its log is NAME.log."""
        argv = [sys.executable, "-m", "celery", "-A", self.app, *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                argv, cwd=ROOT, env={**self.environ(stock), **environ}, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def worker(
        self, *options: str, name: str = "worker", pool: str = "prefork", stock: bool = False, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready."""
        log = self.folder / f"{name}.log"
        before = log.read_text().count(" ready.") if log.exists() else 0
        process = self.start(
            "worker", "-n", f"{name}@test", "-P", pool, "-c", "2", "-l", "INFO", "--without-gossip",
            "--without-mingle", *options, name=name, stock=stock, **environ,
        )  # fmt: skip
        wait_until(
            lambda: process.poll() is not None or log.read_text().count(" ready.") > before, WAIT, f"{name} to be ready"
        )
        assert process.poll() is None, log.read_text()[-3000:]
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

    def run(self, code: str, *, stock: bool = False, timeout: float = 90.0, **environ: str) -> str:
        """What *code* prints, in a process of the project that has imported its tasks."""
        setup = "import time, graft\n"
        if self.app == SHOP:
            setup += f"from {SHOP}.celery import app, at_once\nfrom {SHOP}.tasks import *\n"
        done = subprocess.run(
            [sys.executable, "-c", setup + code], cwd=ROOT, env={**self.environ(stock), **environ}, timeout=timeout,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def celery(self, *command: str, stock: bool = False, code: int | None = 0) -> str:
        """What ``celery -A shop`` with *command* prints."""
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", self.app, *command], cwd=ROOT, env=self.environ(stock),
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def lines(self) -> Counter[str]:
        """What the tasks have written down, by how often."""
        return Counter(self.ledger.read_text().split("\n")[:-1])

    def letters(self) -> list[Any]:
        """The dead letters: reason, and task."""
        code = (
            "from graft.tasks.dead_letters import store\n"
            "print(sorted((letter.reason, letter.task.rpartition('.')[2]) for letter in store.newest()))"
        )
        found: list[Any] = eval(self.run(code))  # Printed by the line above.
        return found

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)
