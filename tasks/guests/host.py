"""The host of guests: makes one for each pool whose calls come to this pool process, and hands it the calls.

    run_call ─► Guests ─► Guest (guest.py)
             ◄─ Answer: what it wrote, in order, and its result

A guest serves its pool alone. It ends with the pool, with the lease of its program, with this process (the kernel sees
to that), and when the run of its call is ended.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import redis

from graft.config.deployment import part
from graft.tasks.errors import GuestRefusedError
from graft.tasks.guests import guest_program, values
from graft.tasks.guests.guest import Event, Guest, GuestEndedError
from graft.tasks.guests.mapped_files import MappedFile

logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 1.0  # Seconds between two looks whether the pools of idle guests live.

Step = Literal["probe", "check", "start", "call"]


@dataclass(frozen=True)
class Answer:
    """What became of one call: what was written meanwhile, in order; the result, or how the guest ended.

    ``seconds`` are the call's own, ``cpu`` those of them that its guest spent on a processor. Where ``lacks`` names
    files that the call maps, it did not run: they are neither on the worker's machine nor in Redis.
    """

    events: tuple[Event, ...] = ()
    result: values.Value | None = None
    exitcode: int | None = None
    report: dict[str, Any] | None = None
    seconds: float = 0.0
    cpu: float = 0.0
    lacks: tuple[str, ...] = ()

    @classmethod
    def of(cls, told: tuple[Any, ...]) -> Answer:
        """The answer that :func:`run_call` has returned to the pool."""
        events, *rest = told
        return cls(pickle.loads(values.take(events)), *rest)


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
                        guest.copies.clear()
                        with suppress(redis.RedisError, OSError):  # They expire.
                            guest.received.clear()
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

    def run(self, step: Step, frame: values.Call | None, files: tuple[MappedFile, ...]) -> Answer:
        """Have the guest come as far as *step*, and make the call *frame*, which maps *files*."""
        guests = part(Guests)
        guest = guests.get(self.pool)
        with guest.lock:
            try:
                return self._run(guest, guests, step, frame, files)
            except GuestEndedError:
                guests.forget(guest)
                events, exitcode = guest.events(), guest.exitcode()
                guest.kill()
                return Answer(events, exitcode=exitcode, seconds=self._seconds())
            except BaseException:  # This run is ended: cancelled, timed out, or given back.
                guests.forget(guest)
                guest.interrupt()
                raise

    def _run(
        self, guest: Guest, guests: Guests, step: Step, frame: values.Call | None, files: tuple[MappedFile, ...]
    ) -> Answer:  # fmt: skip
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
        if lacks := guest.copies.fetch(files):
            return Answer(guest.events(), seconds=self._seconds(), lacks=lacks)
        message = guest.received.read(frame)
        began, cpu = time.perf_counter(), guest.cpu()
        answered = guest.call(message)
        spent = time.perf_counter() - began, max(guest.cpu() - cpu, 0.0)
        result = values.store(self.pool, answered)
        events = guest.events()
        if guest.max_calls and guest.calls >= guest.max_calls:
            guests.forget(guest)
            guest.leave()
        return Answer(events, result, None, None, *spent)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began


def run_call(
    pool: str, step: Step, frame: values.Call | None = None, files: tuple[MappedFile, ...] = ()
) -> tuple[Any, ...]:
    """One call of a program's pool, on this process's guest of it; what :meth:`Answer.of` reads.

    Args:
        pool: the id under which the pool says what its guests are made of.
        step: ``probe`` makes a guest and says what it lacks, ``check`` gives it what the program has set, ``start``
            runs the initializer, ``call`` makes a call.
        frame: the pickled call.
        files: those that the call maps.

    Raises:
        GuestRefusedError: this worker has no folder, module, file or Python as the program has them.
    """
    run = _Run(pool)
    answer = run.probe() if step == "probe" else run.run(step, frame, files)
    events = values.store(pool, pickle.dumps(answer.events))
    return events, answer.result, answer.exitcode, answer.report, answer.seconds, answer.cpu, answer.lacks
