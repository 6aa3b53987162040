"""The guard: the parent of every process of a local stack, so that none of them outlives the program that uses it.

    program (LocalStack) ──socket── guard ─┬─ Redis, workers, Beat, Flower: each in a session of its own
                                           └─ the COMMAND of `dev run`: on the program's terminal

The guard kills whatever descends from it and removes the stack's directory when the program is gone, however it went.
When the guard itself is killed, the kernel kills its children. This is the program's side; the other is
``guard_process.py``, and between them pass lines of JSON: a request, its reply.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("guard_process.py")


class Child:
    """One process that the guard started."""

    def __init__(self, guard: Guard, pid: int) -> None:
        self._guard = guard
        self.pid = pid

    def status(self) -> int | None:
        """The exit code, -n when signal n ended it, or None while it runs."""
        status: int | None = self._guard.request("status", pid=self.pid)
        return status

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to the whole process group if asked; a process that has ended is left alone."""
        self._guard.request("signal", pid=self.pid, number=int(number), group=group)

    def kill(self, timeout: float = 10.0) -> None:
        """Kill it with its process group and wait until it is gone."""
        self.signal(signal.SIGKILL, group=True)
        self.wait(timeout)

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended; False if it still runs after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while self.status() is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class Guard:
    """A guard process and the directory that it removes at the end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._connection, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._serial = 0
        with theirs:
            # Its own process group, so that Ctrl-C ends the command and not the workers under it; the same session,
            # so that the command can be on the terminal.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(PROGRAM), str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                process_group=0,
                env=dict(environ),
            )
        self._replies = self._connection.makefile("r")
        self.pid = self._process.pid
        self.directory = Path(self.request("directory"))

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Path | None = None,
        group: int = 0,
        graceful: bool = True,
    ) -> Child:
        """Start a process in the current directory.

        Args:
            argv: the program and its arguments.
            env: its whole environment.
            log: where its output is appended; without it the process shares the terminal of this one.
            group: the process group it joins; 0 makes a new one. With a *log* it has a session of its own.
            graceful: whether the end begins with a SIGTERM.

        Raises:
            OSError: it could not be started.
        """
        options = {"cwd": os.getcwd(), "log": log and str(log), "group": group, "graceful": graceful}
        return Child(self, self.request("start", argv=list(argv), env=dict(env), **options))

    def detach(self, *leftovers: Path) -> None:
        """Let the guard and its processes outlive this program, until a SIGTERM; *leftovers* go with the directory."""
        self.request("detach", leftovers=[str(path) for path in leftovers])
        self._process.returncode = 0  # No longer ours to wait for: silences the ResourceWarning.
        self._close()

    def stop(self, grace: float) -> None:
        """End every process, by SIGTERM first and by SIGKILL after *grace* seconds, and remove the directory."""
        try:
            with suppress(OSError):  # It may be gone already.
                self._send("stop", grace=grace)
            self._process.wait()
        except BaseException:
            self._connection.shutdown(socket.SHUT_RDWR)  # Impatient: cuts the grace short.
            self._process.wait()
            raise
        finally:
            self._close()
            # Only a guard that was killed leaves it.
            shutil.rmtree(self.directory, ignore_errors=True)

    def request(self, verb: str, **details: Any) -> Any:
        with self._lock:
            reply = self._exchange(verb, details)
        if reply is None:
            raise ChildProcessError(f"the guard process {self.pid} of the local stack was killed, and its children")
        if "error" in reply:
            raise OSError(*reply["error"])
        return reply["value"]

    def _exchange(self, verb: str, details: dict[str, Any]) -> dict[str, Any] | None:
        try:
            serial = self._send(verb, **details)
            while line := self._replies.readline():
                reply: dict[str, Any] = json.loads(line)
                if reply["serial"] == serial:  # And not the answer to a question that a signal interrupted.
                    return reply
        except (BrokenPipeError, ConnectionResetError):
            pass
        return None

    def _send(self, verb: str, **details: Any) -> int:
        self._serial += 1
        self._connection.sendall(json.dumps({"serial": self._serial, "verb": verb, **details}).encode() + b"\n")
        return self._serial

    def _close(self) -> None:
        self._replies.close()
        self._connection.close()
