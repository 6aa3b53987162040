"""A corner of the machine in which everything that a tool leaves behind is found again."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.stack import clean_environ, wait_until

MARK = "SANDBOX_OF_THIS_TEST"


class Sandbox:
    """An environment that every process started with it can be recognised by, and directories of its own."""

    def __init__(self, root: Path) -> None:
        self.temporary = root / "temporary files"
        self.runtime = root / "run"
        self.work = root / "work"
        for directory in (self.temporary, self.runtime, self.work):
            directory.mkdir(parents=True)
        self.env = {
            **clean_environ(os.environ),
            MARK: secrets.token_hex(8),
            "TMPDIR": str(self.temporary),
            "XDG_RUNTIME_DIR": str(self.runtime),
        }

    def processes(self) -> list[psutil.Process]:
        """Every process that runs with this environment, or in this place: Redis writes its title over the former."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get(MARK) == self.env[MARK] or str(self.temporary) in process.cwd()
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def find(self, word: str) -> psutil.Process | None:
        """The process whose command line has *word* in it."""
        for process in self.processes():
            try:
                if any(word in argument for argument in process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def ports(self) -> list[tuple[str, int]]:
        """The addresses at which its processes listen."""
        found = []
        for process in self.processes():
            try:
                connections = process.net_connections("tcp")
            except psutil.NoSuchProcess:
                continue
            found += [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]
        return found

    def files(self) -> list[Path]:
        return [path for directory in (self.temporary, self.runtime) for path in directory.iterdir()]

    def kill(self) -> None:
        """End every process that still runs here."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def is_clean(self) -> bool:
        return not self.processes() and not self.files()

    def check_clean(self, timeout: float = 10.0) -> None:
        """Fail unless no process, and with it no port, and no file is left within *timeout* seconds."""
        try:
            wait_until(self.is_clean, timeout)
        except AssertionError:
            pytest.fail(f"left after {timeout:g} s: {self.processes()} {self.files()}")

    def dev(self, *arguments: str, text: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """``python -m graft.scripts.dev`` with *text* on its standard input."""
        return subprocess.run(
            [sys.executable, "-m", "graft.scripts.dev", *arguments],
            env={**self.env, **environ},
            cwd=self.work,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *command: str, text: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """``dev run`` with the smallest stack."""
        return self.dev("run", "--lane", "cpu=1", "--", *command, text=text, **environ)

    @contextmanager
    def start(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """``dev run``, without waiting for its end; killed after the block if it still runs."""
        argv = [sys.executable, "-m", "graft.scripts.dev", "run", "--lane", "cpu=1", "--", *command]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            argv, env=self.env, cwd=self.work, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as dev:
            try:
                yield dev
            finally:
                dev.kill()
