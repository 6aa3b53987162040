"""Threads for what cannot leave this process: they take their tasks from the pool's ledger, under the pool's bounds.

One thread at a time looks for work; the one that finds some leaves the looking to the next.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import uuid4

from graft.compat.worker_pool.placement import Work
from graft.config.deployment import settings
from graft.tasks.errors import BrokerUnavailable, ItemTimeoutError
from graft.tasks.pools.state import Done, Holder, Ledger, Taken, Turn
from graft.tasks.shared.lease_renewer import lease_renewer

logger = logging.getLogger("graft.compat.worker_pool")

LOOK_EVERY: Final = 0.01
REST: Final = 1.0  # Seconds without work after which a thread ends.


@dataclass(frozen=True, slots=True)
class Local:
    """What became of a task that ran here."""

    work: Work
    value: Any
    error: BaseException | None
    seconds: float
    slot: int
    worker: str
    item: int = 0


@dataclass(slots=True)
class _Call:
    work: Work
    deliver: Callable[[Local], None]
    drop: Callable[[], None]


class Crew:
    """Up to *size* threads of this process, for one pool."""

    def __init__(self, ledger: Ledger, client: str, size: int, send: Callable[[Sequence[str]], None]) -> None:
        self._ledger = ledger
        self._client = client
        self._size = size
        self._send = send
        self._changed = threading.Condition()
        self._looking = threading.Lock()
        self._calls: dict[str, _Call] = {}
        self._threads = 0
        self._running = 0
        self.was_used = False

    @property
    def is_running(self) -> bool:
        """Whether a task runs here, or has run and is about to be delivered."""
        return self._running > 0

    def put(self, name: str, work: Work, deliver: Callable[[Local], None], drop: Callable[[], None]) -> None:
        """Have *work* ready under *name*, which is its content in the ledger; *drop* ends it without a run."""
        self.was_used = True
        with self._changed:
            self._calls[name] = _Call(work, deliver, drop)

    def discard(self, name: str) -> None:
        """The pool did not accept it."""
        with self._changed:
            self._calls.pop(name, None)

    def wake(self) -> None:
        """Some of it is in the ledger now."""
        with self._changed:
            if self._calls and self._threads < self._size and not self._looking.locked():
                self._start()
            self._changed.notify_all()

    def drop_all(self) -> None:
        """The pool is down: what has not begun never will."""
        with self._changed:
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.drop()

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="graft-pool-local", daemon=True).start()

    def _work(self) -> None:
        holder = Holder(self._client, uuid4().hex, uuid4().hex)
        while True:
            with self._looking:
                turn = self._look(holder)
            with self._changed:
                if turn is None:
                    self._threads -= 1
                    if self._calls and not self._threads:  # It came in between.
                        self._start()
                    return
                if self._calls and self._threads < self._size:
                    self._start()
            self._run(holder, turn)

    def _look(self, holder: Holder) -> Turn | None:
        """A turn with a task; None when there has been nothing to run for a while."""
        rested = time.monotonic()
        while True:
            with self._changed:
                if not self._calls:
                    if time.monotonic() - rested > REST:
                        return None
                    self._changed.wait(REST / 4)
                    continue
            rested = time.monotonic()
            try:
                turn = self._ledger.begin(holder)
            except BrokerUnavailable as error:
                logger.debug("no task can be begun: %s", error)
                turn = Turn("done")
            self._send(turn.tickets)
            if turn.what == "task":
                return turn
            with self._changed:
                self._changed.wait(LOOK_EVERY)

    def _run(self, holder: Holder, turn: Turn) -> None:
        while turn.taken is not None:
            taken = turn.taken
            lease_renewer().keep(holder.token, partial(self._renew, holder, taken), settings().visibility_timeout / 3)
            try:
                turn = self._finish(holder, taken)
            finally:
                lease_renewer().drop(holder.token)
        self._send(turn.tickets)
        with self._changed:
            self._changed.notify_all()

    def _renew(self, holder: Holder, taken: Taken) -> bool:
        self._ledger.renew(holder, taken)
        return True

    def _finish(self, holder: Holder, taken: Taken) -> Turn:
        with self._changed:
            call = self._calls.pop(taken.content, None)
            self._running += 1
        try:
            if call is None:  # Dropped meanwhile.
                return self._step(holder, Done(taken, True, 0.0))
            local = _Execution(call, taken.slot).run()
            turn = self._step(holder, Done(taken, local.error is not None, local.seconds))
            call.deliver(local)  # After the ledger: whoever has the result finds it counted.
            return turn
        finally:
            with self._changed:
                self._running -= 1

    def _step(self, holder: Holder, done: Done) -> Turn:
        end = time.monotonic() + settings().outage_grace
        while True:
            try:
                return self._ledger.step(holder, done, more=True)
            except BrokerUnavailable as error:
                if time.monotonic() > end:
                    logger.error("a task that ran here could not be recorded as finished: %s", error)
                    return Turn("lost")
                time.sleep(0.1)


class _Execution:
    """One task in one thread. A thread cannot be stopped: at its limit the error goes out, and the slot stays taken."""

    def __init__(self, call: _Call, slot: int) -> None:
        self.call = call
        self.slot = slot
        self.began = time.perf_counter()
        self._lock = threading.Lock()
        self._is_late = False

    def run(self) -> Local:
        work = self.call.work
        timer = threading.Timer(work.timeout, self.ring) if work.timeout else None
        if timer:
            timer.daemon = True
            timer.start()
        local = self.apply()
        if timer:
            timer.cancel()
            with self._lock:
                if self._is_late:
                    self.call.deliver = lambda _: None
                    return self.late()
                self._is_late = True  # The timer may have fired just now; it finds the task finished.
        return local

    def apply(self) -> Local:
        work = self.call.work
        values: list[Any] = []
        try:
            for item in work.items:
                value = work.func(*item[0], **item[1]) if work.unpack else work.func(item)
                values.append(asyncio.run(_await(value)) if inspect.isawaitable(value) else value)
        except BaseException as error:
            return self.local(None, error, len(values))
        return self.local(values[0] if work.single else values)

    def ring(self) -> None:
        with self._lock:
            if self._is_late:
                return
            self._is_late = True
        self.call.deliver(self.late())

    def late(self) -> Local:
        timeout = self.call.work.timeout
        return self.local(None, ItemTimeoutError(f"the item ran longer than its limit of {timeout:g} s"))

    def local(self, value: Any, error: BaseException | None = None, item: int = 0) -> Local:
        seconds = time.perf_counter() - self.began
        return Local(self.call.work, value, error, seconds, self.slot, f"caller {os.getpid()}", item)


async def _await(value: Any) -> Any:
    return await value
