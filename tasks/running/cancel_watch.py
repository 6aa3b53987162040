"""Whether the items that run here, and those of their envelopes that have not begun, are still wanted.

    one thread ── 5 times a second, the flags of all runs that are older than that, in one round trip ──► each run

A run that is told begins no such item from then on. Where items that run are to be ended too, a coroutine is cancelled,
and a plain function is interrupted by the signal of a soft time limit, each once.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from graft.config.deployment import part
from graft.config.redis_client import shared
from graft.tasks.delivery import cancellation
from graft.tasks.delivery.cancellation import NOTHING, Cancelled
from graft.tasks.envelope import Envelope

logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 0.2  # Seconds between two looks at the flags.
IDLE_AFTER: Final = 50  # Looks at nothing, after which the thread sleeps until the next run.

Tell = Callable[[Cancelled], None]  # Called on the watching thread.


@dataclass
class _Watched:
    envelope: Envelope
    tell: Tell
    known: Cancelled = NOTHING
    began: float = field(default_factory=time.monotonic)


class CancelWatch:
    """The thread that looks at the flags of the runs of this process."""

    def __init__(self) -> None:
        self._runs: dict[int, _Watched] = {}
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, envelope: Envelope, tell: Tell) -> Iterator[None]:
        """Call *tell* with what is cancelled of *envelope*, as soon as anything is."""
        run = _Watched(envelope, tell)
        self._runs[id(run)] = run
        self._begun.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="graft-cancelled", daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            del self._runs[id(run)]

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(CHECK_EVERY)
            due = time.monotonic() - CHECK_EVERY
            runs = list(self._runs.values())
            try:
                _tell([run for run in runs if run.began < due], shared())
            except (redis.RedisError, OSError) as error:  # It is asked again, and nothing is lost meanwhile.
                logger.debug("cancel flags cannot be read: %s", error)
            except Exception:
                logger.exception("a run could not be told that it is cancelled")
            idle = 0 if runs else idle + 1
            if idle > IDLE_AFTER:
                self._begun.clear()
                if not self._runs:
                    self._begun.wait()
                idle = 0


def _tell(runs: list[_Watched], client: Any) -> None:
    runs = [run for run in runs if cancellation.may_be_cancelled(run.envelope.batch, run.envelope.id)]
    if not runs:
        return
    flags = client.mget([key for run in runs for key in cancellation.flag_keys(run.envelope.batch, run.envelope.id)])
    for number, run in enumerate(runs):
        own = flags[2 * number : 2 * number + 2]
        if not any(own):
            continue
        now = cancellation.read(own, run.envelope.batch, run.envelope.positions, client)
        if now != run.known or now.running:  # An item may have begun in the moment in which the run was told.
            run.known = now
            run.tell(now)


def cancel_watch() -> CancelWatch:
    """The watch of this process."""
    return part(CancelWatch)


class Interruption:
    """Ends the plain function that the main thread is in, from another thread.

    The signal is the one that Celery's soft time limit uses, so what a function does about that one serves here too.
    """

    def __init__(self) -> None:
        self.is_inside = False  # The main thread is in a function that may be ended.
        self._error: BaseException | None = None
        self._is_possible = False

    @contextmanager
    def possible(self) -> Iterator[None]:
        """Meanwhile :meth:`send` works, if this is the main thread; a time limit's own signal passes through."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGUSR1)

        def handle(signum: int, frame: Any) -> None:
            error, self._error = self._error, None
            if error is None:
                if callable(before):
                    before(signum, frame)
            elif self.is_inside:
                self.is_inside = False  # What it does about it is not interrupted again.
                raise error

        signal.signal(signal.SIGUSR1, handle)
        self._is_possible = True
        try:
            yield
        finally:
            self._is_possible = False
            signal.signal(signal.SIGUSR1, before)

    def send(self, error: BaseException) -> None:
        """Have *error* raised in the function, unless it has ended."""
        main = threading.main_thread().ident
        if self._is_possible and self.is_inside and main is not None:
            self._error = error
            signal.pthread_kill(main, signal.SIGUSR1)
