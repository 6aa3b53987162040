"""The guard's own process (see guard.py): starts processes, and ends all of them when the program ends that uses them.

Linux only: it relies on subreapers and on a signal at the parent's death. Started as a bare file, in 30 ms; needs the
standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Server:
    """Answers one program, and has no child that it forgets."""

    def __init__(self, connection: socket.socket, program: int) -> None:
        self.pid = os.getpid()
        self.connection = connection
        self.program: int | None = program  # None once detached from it.
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.graceful: set[int] = set()
        self.unread = b""
        self.told_to_end = False
        self.grace = 0.0
        self.prctl = ctypes.CDLL(None, use_errno=True).prctl
        self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.wakeup = self.answer_signals()
        self.directory = tempfile.mkdtemp(prefix="celery-graft-")
        self.leftovers = [self.directory]

    def answer_signals(self) -> socket.socket:
        """Set the handlers; what comes back becomes readable at every signal."""
        wakeup, wake = socket.socketpair()
        wakeup.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)
        # Handlers and not SIG_IGN, which the children would inherit; what `nohup` ignores stays ignored.
        for number in (signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.on_sigterm)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return wakeup

    def on_sigterm(self, *_: object) -> None:
        if self.told_to_end:
            self.grace = 0.0
        else:
            self.told_to_end, self.grace = True, 10.0

    def serve(self) -> None:
        try:
            while not self.told_to_end and self.wait():
                pass
            self.end()
        finally:
            for path in self.leftovers:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):
                    os.unlink(path)

    def wait(self) -> bool:
        """Sleep until something happens and answer it; False when the program is gone."""
        watched = [self.wakeup] if self.program is None else [self.wakeup, self.connection]
        # A process that the program forked may hold its end of the connection open, hence the second check.
        ready, _, _ = select.select(watched, [], [], 0.5)
        if self.wakeup in ready:
            self.wakeup.recv(4096)
        self.reap()
        if self.connection in ready:
            try:
                received = self.connection.recv(1 << 16)
            except ConnectionError:  # It was killed before it read an answer.
                return False
            if not received:
                return False
            *requests, self.unread = (self.unread + received).split(b"\n")
            for request in requests:
                self.answer(json.loads(request))
        return self.program in (None, os.getppid())

    def answer(self, request: dict[str, Any]) -> None:
        serial, verb = request.pop("serial"), request.pop("verb")
        try:
            reply = {"value": getattr(self, f"do_{verb}")(**request)}
        except OSError as error:
            reply = {"error": [error.errno, error.strerror, error.filename]}
        with suppress(OSError):
            self.connection.sendall(json.dumps({"serial": serial, **reply}).encode() + b"\n")

    def do_directory(self) -> str:
        return self.directory

    def do_start(
        self, *, argv: list[str], env: dict[str, str], cwd: str, log: str | None, group: int, graceful: bool
    ) -> int:
        options: dict[str, Any] = {"process_group": group}
        with open(log or os.devnull, "ab") as output:
            if log:
                options = {"start_new_session": True, "stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            child = subprocess.Popen(argv, env=env, cwd=cwd, preexec_fn=self.die_with_guard, **options)  # noqa: PLW1509
        self.children[child.pid] = child
        if graceful:
            self.graceful.add(child.pid)
        return child.pid

    def die_with_guard(self) -> None:
        # Runs in the child. Safe here: the guard has one thread, so no lock can be held and that thread is its life.
        self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.pid:
            os._exit(1)

    def do_status(self, pid: int) -> int | None:
        self.reap()
        return self.children[pid].returncode

    def do_signal(self, pid: int, number: int, group: bool) -> None:
        self.reap()
        if self.children[pid].returncode is None:
            (os.killpg if group else os.kill)(pid, number)

    def do_detach(self, leftovers: list[str]) -> None:
        self.program = None
        self.leftovers += leftovers
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # Whoever reads the program's output must see it end.
            os.dup2(nowhere, descriptor)

    def do_stop(self, grace: float) -> None:
        self.told_to_end, self.grace = True, grace

    def reap(self) -> None:
        """Note who has ended. Orphans among its descendants are the guard's to reap, too."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if child := self.children.get(found[0]):
                    child.returncode = os.waitstatus_to_exitcode(found[1])
                    if self.program == os.getppid():
                        os.kill(self.program, signal.SIGCHLD)  # `dev run` waits as if the command were its own child.

    def end(self) -> None:
        """SIGTERM and patience for those that deserve it, then SIGKILL for every descendant."""
        begun = time.monotonic()
        for pid in self.graceful:
            self.do_signal(pid, signal.SIGTERM, group=False)
        while any(self.children[pid].returncode is None for pid in self.graceful):
            if time.monotonic() > begun + self.grace or not self.wait():
                break
        # The orphans of a killed child become children of the guard: the next round finds them.
        while descendants := self.own_children():
            for pid in descendants:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            self.reap()

    def own_children(self) -> list[int]:
        """Children of the guard, also dead ones that are not reaped: their ids cannot be reused yet."""
        try:
            return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
        except FileNotFoundError:  # A kernel built without CONFIG_PROC_CHILDREN.
            return [pid for pid, child in self.children.items() if child.returncode is None]


if __name__ == "__main__":
    Server(socket.socket(fileno=int(sys.argv[1])), program=int(sys.argv[2])).serve()
