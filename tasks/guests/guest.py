"""One guest process, as its host has it: made, spoken to over a connection, its standard streams read, ended.

Guest ── connection ──► guest_process.py
      ◄─ messages; what it writes to its streams comes before the message that follows it
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from graft.tasks.errors import GuestRefusedError
from graft.tasks.guests import guest_program, mapped_files, values
from graft.tasks.guests.guest_program import Spec

PROGRAM: Final = Path(__file__).with_name("guest_process.py")
LAST_WORDS: Final = 2.0  # Seconds that a guest has to end by itself.
# Of the deployment, never of the program: a guest is no client of ours, unless its worker is.
OURS: Final = ("GRAFT_", "CELERY_")

Event = tuple[Literal["out", "err", "log"], bytes]


class GuestEndedError(Exception):
    """The guest has ended."""


class Guest:
    """One guest process, made from *spec*."""

    def __init__(self, pool: str, spec: Spec) -> None:
        self.pool = pool
        self.calls, self.max_calls = 0, spec["max_tasks"]
        self.is_started = self.is_ready = False
        self.lock = threading.Lock()
        self.received, self.copies = values.Received(), mapped_files.Copies(pool)
        _refuse_unfit(spec)
        number = guest_program.count_made(pool)
        # Of more guests than the pool has processes, the others begin in silence.
        self.is_surplus = number >= len(spec["names"])
        spec = {**spec, "name": spec["names"][number % len(spec["names"])]}
        ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        spec["env"] = {name: value for name, value in spec["env"].items() if not name.startswith(OURS)} | ours
        environ = dict(spec["env"])
        if spec["seed"] is not None:
            environ["PYTHONHASHSEED"] = spec["seed"]
        here, theirs = os.pipe(), os.pipe()
        mine, its = _pair()
        try:
            self.process = subprocess.Popen(
                [_executable(spec), *spec["flags"], str(PROGRAM), str(its), str(os.getpid())],
                cwd=spec["cwd"], env=environ, stdin=subprocess.DEVNULL, stdout=here[1], stderr=theirs[1],
                pass_fds=[its], umask=spec["umask"], start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            for descriptor in (here[0], theirs[0], mine):
                os.close(descriptor)
            raise GuestRefusedError(f"this worker cannot make a process for the program: {error}") from error
        finally:
            for descriptor in (here[1], theirs[1], its):
                os.close(descriptor)
        self._connection = Connection(mine)
        self._streams: dict[int, Literal["out", "err"]] = {here[0]: "out", theirs[0]: "err"}
        for descriptor in self._streams:
            os.set_blocking(descriptor, False)
        self._events: list[Event] = []
        try:
            self._send(pickle.dumps(spec))
            self.report: dict[str, Any] = pickle.loads(self._receive(b"P"))
        except GuestEndedError as error:
            said = b"".join(data for kind, data in self.events() if kind == "err").decode(errors="replace").strip()
            code = self.exitcode()
            self.kill()
            last = said.rpartition("\n")[2] or "it said nothing"
            raise GuestRefusedError(f"a guest ended at once with exit code {code}: {last}") from error
        except BaseException:
            self.kill()
            raise

    def start(self, gift: bytes) -> None:
        """Have it become a process of its pool; *gift* is what the program has set in its modules."""
        self._send(b"G" + gift)
        refused = self._receive(b"T").decode(errors="replace")
        if refused:
            raise GuestRefusedError(f"the worker on {os.uname().nodename} cannot run the program: {refused}")
        self.is_started = True

    def wait_ready(self) -> None:
        """Wait until its initializer has ended."""
        if not self.is_ready:
            self._receive(b"I")
            self.is_ready = True
            if self.is_surplus:
                self.events()

    def call(self, frame: bytes) -> bytes:
        """The pickled result of one call."""
        self.calls += 1
        self._send(b"C" + frame)
        return self._receive(b"R")

    def cpu(self) -> float:
        """Seconds that it, and what it has started and waited for, have spent on processors so far."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:  # It has just ended.
            return 0.0
        return times.user + times.system + times.children_user + times.children_system

    def events(self) -> tuple[Event, ...]:
        """What has been written since the last time."""
        self._drain()
        taken, self._events = tuple(self._events), []
        return taken

    def exitcode(self) -> int:
        """How it ended, once it has."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(LAST_WORDS)
        self.kill()
        return self.process.wait()

    def leave(self) -> None:
        """End it in peace: it has done its work."""
        with suppress(OSError, GuestEndedError):
            self._send(b"Q")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS)
        self.kill()

    def interrupt(self) -> None:
        """End it in the middle of a call, as Ctrl-C and ``terminate`` do."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_WORDS / 4)
        self.kill()

    def kill(self) -> None:
        """End it and what it has started, and close its streams."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._connection.close()
        for descriptor in self._streams:
            with suppress(OSError):
                os.close(descriptor)
        self._streams = {}

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise GuestEndedError from error

    def _receive(self, tag: bytes) -> bytes:
        """The rest of its next message that begins with *tag*; log records on the way are events."""
        poll = select.poll()
        for descriptor in (self._connection.fileno(), *self._streams):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            self._drain()
            for descriptor in self._streams.keys() & ready.keys():
                if not ready[descriptor] & select.POLLIN:
                    poll.unregister(descriptor)
            if self._connection.fileno() not in ready:
                continue
            try:
                message = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                self._drain()
                raise GuestEndedError from error
            self._drain()  # Written before it was sent.
            if message[:1] == tag:
                return message[1:]
            if message[:1] in (b"L", b"W"):
                self._events.append(("log", message[1:]))
            if message[:1] == b"W":
                self._send(b"A")

    def _drain(self) -> None:
        for descriptor, stream in self._streams.items():
            while True:
                try:
                    data = os.read(descriptor, 1 << 16)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                        break
                    raise
                if not data:
                    break
                if self._events and self._events[-1][0] == stream:
                    self._events[-1] = (stream, self._events[-1][1] + data)
                else:
                    self._events.append((stream, data))


def _pair() -> tuple[int, int]:
    import socket

    mine, its = socket.socketpair()
    return mine.detach(), its.detach()


def _executable(spec: Spec) -> str:
    """The program's own interpreter where this machine has it, else this worker's."""
    theirs: str = spec["executable"]
    return theirs if os.access(theirs, os.X_OK) and os.path.isfile(theirs) else sys.executable


def _refuse_unfit(spec: Spec) -> None:
    """Refuse before anything runs what cannot run here as it would in the program's own process."""
    where = os.uname().nodename
    if spec["version"] != tuple(sys.version_info[:2]) and _executable(spec) == sys.executable:
        theirs, ours = (".".join(map(str, version)) for version in (spec["version"], sys.version_info[:2]))
        raise GuestRefusedError(
            f"the program runs Python {theirs}, and the worker on {where} Python {ours}; run the same version on both"
        )
    if not os.path.isdir(spec["cwd"]):
        raise GuestRefusedError(
            f"the worker on {where} has no folder {spec['cwd']}, in which the program runs; share it, or run the "
            "program in a folder that both have"
        )
