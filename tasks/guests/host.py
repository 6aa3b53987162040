"""The host of guests: makes one for each pool whose calls come to this pool process, and hands it the calls.

    run_call ─► Guest ── connection ──► guest_process.py        its standard streams are read here
             ◄─ Answer: what it wrote, in order, and its result

A guest serves its pool alone. It ends with the pool, with the lease of its program, with this process (the kernel sees
to that), and when the run of its call is ended.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import redis

from graft.config.deployment import part
from graft.tasks.errors import GuestRefusedError
from graft.tasks.guests import guest_program
from graft.tasks.guests.guest_program import Frame, Spec

logger = logging.getLogger(__name__)

PROGRAM: Final = Path(__file__).with_name("guest_process.py")
CHECK_EVERY: Final = 1.0  # Seconds between two looks whether the pools of idle guests live.
LAST_WORDS: Final = 2.0  # Seconds that a guest has to end by itself.
# Of the deployment, never of the program: a guest is no client of ours, unless its worker is.
OURS: Final = ("GRAFT_", "CELERY_")

Event = tuple[Literal["out", "err", "log"], bytes]
Step = Literal["probe", "check", "start", "call"]


@dataclass(frozen=True)
class Answer:
    """What became of one call: what was written meanwhile, in order; the result, or how the guest ended.

    ``seconds`` are the call's own, ``cpu`` those of them that its guest spent on a processor.
    """

    events: tuple[Event, ...] = ()
    result: Frame | None = None
    exitcode: int | None = None
    report: dict[str, Any] | None = None
    seconds: float = 0.0
    cpu: float = 0.0

    @classmethod
    def of(cls, told: tuple[Any, ...]) -> Answer:
        """The answer that :func:`run_call` has returned to the pool."""
        events, *rest = told
        return cls(pickle.loads(guest_program.unpack(events, keep=False)), *rest)


class GuestEndedError(Exception):
    """The guest has ended."""


class Guest:
    """One guest process, made from *spec*."""

    def __init__(self, pool: str, spec: Spec) -> None:
        self.pool = pool
        self.calls, self.max_calls = 0, spec["max_tasks"]
        self.is_started = self.is_ready = False
        self.lock = threading.Lock()
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


class Guests:
    """The guests of this process, at most one for each pool."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, pool: str) -> Guest:
        """The guest of *pool*, made if there is none.

        Raises:
            GuestRefusedError: this worker has no folder, module or Python as the program has them.
        """
        guest = self._guests.get(pool)
        if guest is None:
            guest = Guest(pool, guest_program.fetch(pool))
            with self._lock:
                self._guests[pool] = guest
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._watch, name="graft-guests", daemon=True)
                    self._thread.start()
        return guest

    def forget(self, guest: Guest) -> None:
        with self._lock:
            if self._guests.get(guest.pool) is guest:
                del self._guests[guest.pool]

    def _watch(self) -> None:
        """End the guests whose pool has ended."""
        while True:
            time.sleep(CHECK_EVERY)
            guests = list(self._guests.values())
            try:
                living = guest_program.alive([guest.pool for guest in guests])
            except (redis.RedisError, OSError) as error:
                logger.debug("the leases of pools cannot be read: %s", error)
                continue
            for guest, lives in zip(guests, living, strict=True):
                if lives:
                    continue
                self.forget(guest)
                if guest.lock.acquire(blocking=False):
                    try:
                        guest.leave()
                    finally:
                        guest.lock.release()
                else:  # It runs a call that nobody waits for.
                    with suppress(OSError):
                        os.killpg(guest.process.pid, signal.SIGKILL)


@dataclass
class _Run:
    """One call for the guest of *pool*."""

    pool: str
    began: float = field(default_factory=time.perf_counter)

    def probe(self) -> Answer:
        """Make a guest, and say what it lacks; the pool's first call goes on with it."""
        guest = part(Guests).get(self.pool)
        return Answer(guest.events(), report=guest.report, seconds=self._seconds())

    def run(self, step: Step, frame: Frame | None) -> Answer:
        """Have the guest come as far as *step*, and make the call *frame*."""
        guests = part(Guests)
        guest = guests.get(self.pool)
        with guest.lock:
            try:
                return self._run(guest, guests, step, frame)
            except GuestEndedError:
                guests.forget(guest)
                events, exitcode = guest.events(), guest.exitcode()
                guest.kill()
                return Answer(events, exitcode=exitcode, seconds=self._seconds())
            except BaseException:  # This run is ended: cancelled, timed out, or given back.
                guests.forget(guest)
                guest.interrupt()
                raise

    def _run(self, guest: Guest, guests: Guests, step: Step, frame: Frame | None) -> Answer:
        spec = guest_program.fetch(self.pool) if not guest.is_started else None
        if spec is not None:
            missing = {name: why for name, why in guest.report["missing"].items() if name in spec["own"]}
            refused = guest.report["refused"] or next((f"{name}: {why}" for name, why in missing.items()), "")
            if refused:
                raise GuestRefusedError(f"the worker on {os.uname().nodename} cannot run the program: {refused}")
            guest.start(spec["gift"])
        if step == "check":
            return Answer(seconds=self._seconds())
        guest.wait_ready()
        if frame is None:
            return Answer(guest.events(), seconds=self._seconds())
        message = guest_program.unpack(frame, keep=True)
        began, cpu = time.perf_counter(), guest.cpu()
        answered = guest.call(message)
        spent = time.perf_counter() - began, max(guest.cpu() - cpu, 0.0)
        result = guest_program.pack(self.pool, answered)
        events = guest.events()
        if guest.max_calls and guest.calls >= guest.max_calls:
            guests.forget(guest)
            guest.leave()
        return Answer(events, result, None, None, *spent)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began


def run_call(pool: str, step: Step, frame: Frame | None = None) -> tuple[Any, ...]:
    """One call of a program's pool, on this process's guest of it; what :meth:`Answer.of` reads.

    Args:
        pool: the id under which the pool says what its guests are made of.
        step: ``probe`` makes a guest and says what it lacks, ``check`` gives it what the program has set, ``start``
            runs the initializer, ``call`` makes a call.
        frame: the pickled call.

    Raises:
        GuestRefusedError: this worker has no folder, module or Python as the program has them.
    """
    run = _Run(pool)
    answer = run.probe() if step == "probe" else run.run(step, frame)
    events = guest_program.pack(pool, pickle.dumps(answer.events))
    return events, answer.result, answer.exitcode, answer.report, answer.seconds, answer.cpu
