"""The parts behind a pool, opened when they are first needed: ledger, intake, threads, and what comes back.

submit ─ Placing ─┬─ sealed ──► Intake ─► ledger ─► ticket ─► worker: graft.tasks.pools.worker ─► results, replies
                  └─ a call here ► Crew ─ takes its turn in the same ledger ─────────────► Mailbox, futures
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, Literal
from uuid import uuid4

from graft.compat.placement import is_local
from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.local_state import LocalLedger
from graft.compat.worker_pool.local_threads import Crew, Local
from graft.compat.worker_pool.placement import Placed, Placing
from graft.compat.worker_pool.processor import as_result
from graft.compat.worker_pool.replies import AT_ONCE, Mailbox, Replies, pop, result_of
from graft.compat.worker_pool.submission import Intake, send
from graft.tasks.pools.state import TO_NOBODY, TO_STREAM, Entry, Ledger, Limits, RedisLedger, Standing, redis_or_error
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger("graft.compat.worker_pool")

POLLS: Final = (0.001, 0.002, 0.005, 0.01, 0.02)  # Seconds between looks at a queue without room, or a pool's end.
Answer = Literal["stream", "reply", "nobody"]


def poll(attempt: int) -> float:
    """Seconds until the next look."""
    return POLLS[min(attempt, len(POLLS) - 1)]


class Engine:
    """One process's part in one pool. Without a name the pool is this process's own, and ends with it."""

    def __init__(
        self,
        kind: str,
        limits: Limits,
        limit: int,
        name: str | None,
        place: Literal["cluster", "local"] | None,
        *,
        is_strict: bool = False,
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"name={name!r} must be a text that is not empty")
        self.limits = limits
        self.is_private = name is None
        self.name = name or f"unnamed-{uuid4().hex}"
        self.is_shared = not is_local() and not in_worker() and (place != "local" or name is not None)
        only_here = "" if self.is_shared else "the pool is kept in this process (GRAFT_MODE=local, or inside a task)"
        self.placing = Placing(kind, only_here, place)
        self._limit = limit
        self._is_strict = is_strict
        self._opening = threading.Lock()
        self._last: Standing | None = None
        self._is_started = False
        self._ledger: Ledger | None = None
        self.mailbox = Mailbox()
        self._reading = threading.Lock()
        _engines.add(self)

    # ---- opening ---------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._ledger is not None

    def open(self) -> Ledger:
        """The ledger; made, with all that belongs to it, at the first call."""
        with self._opening:
            if self._ledger is None:
                self._equip(self._make_ledger())
            assert self._ledger is not None
            return self._ledger

    def _make_ledger(self) -> Ledger:
        if self.is_shared:
            return RedisLedger.open(self.name, self.limits, self._limit)
        return LocalLedger(self.limits, self._limit)

    def _equip(self, ledger: Ledger) -> None:
        client = uuid4().hex
        self.client = client
        self.mailbox = mailbox = Mailbox()
        self.replies = replies = Replies(client, ledger if isinstance(ledger, RedisLedger) else None)
        self.crew = crew = Crew(ledger, client, self.limits.workers, partial(send, ledger))
        written = _written(mailbox, replies, crew)

        def closed() -> None:
            crew.drop_all()
            replies.give_up()

        self.intake = intake = Intake(ledger, client, written, closed, is_strict=self._is_strict)
        self._ledger = ledger
        weakref.finalize(self, intake.leave)
        intake.run()

    def after_fork(self) -> None:
        """A child has none of the parent's threads, and none of its results and futures."""
        self._opening, self._reading = threading.Lock(), threading.Lock()
        if self._ledger is not None:
            self._equip(self._ledger)

    @property
    def is_started(self) -> bool:
        return self._is_started

    def start(self) -> None:
        """Begin processing; once."""
        if not self._is_started:
            _, tickets = self.open().start()
            self._is_started = True
            send(self.open(), tickets)
            self.crew.wake()

    # ---- submitting ------------------------------------------------------------------------------------------------

    def entry(self, placed: Placed, answer: Answer, priority: float = 0.0) -> tuple[Entry, Future[Any] | None]:
        """*placed* as the ledger takes it, and the future of its answer where somebody awaits it."""
        future: Future[Any] | None = None
        reply, number = (TO_STREAM if answer == "stream" else TO_NOBODY), 0
        if answer == "reply":
            number, future = self.replies.expect(remote=not placed.is_local)
            reply = f"{self.client}:{number}"
        score = -float(priority) or 0.0
        if not placed.is_local:
            return Entry(score, "", reply, placed.content), future
        name = uuid4().hex
        self.crew.put(name, placed.work, self._deliverer(answer, number), self._dropper(number))
        return Entry(score, self.client, reply, name), future

    def _deliverer(self, answer: Answer, number: int) -> Callable[[Local], None]:
        mailbox, replies, name = self.mailbox, self.replies, self.name

        def deliver(local: Local) -> None:
            if answer == "stream":
                mailbox.put(_result(local))
            elif answer == "reply":
                replies.answer(number, local)
            elif local.error is not None:
                logger.error("a task spawned in pool %s failed: %r", name, local.error)

        return deliver

    def _dropper(self, number: int) -> Callable[[], None]:
        replies = self.replies
        return lambda: replies.cancel(number)

    def refused(self, entry: Entry) -> None:
        """The pool did not accept *entry*."""
        self.crew.discard(entry.content)
        _, _, number = entry.reply.partition(":")
        if number:
            self.replies.cancel(int(number))

    def withdraw(self, entries: Sequence[Entry]) -> None:
        """Take out what has not begun of *entries*; nobody waits for it any more."""
        try:
            self.open().withdraw([entry.reply for entry in entries])
        except ConnectionError as error:
            logger.debug("tasks could not be withdrawn: %s", error)
        for entry in entries:
            self.refused(entry)

    # ---- the stream of results -------------------------------------------------------------------------------------

    def read(self, seconds: float) -> bool:
        """Move results into the mailbox, waiting up to *seconds* for the first; False when somebody else is reading."""
        if not self._reading.acquire(blocking=False):
            return False
        try:
            self._read(seconds)
        finally:
            self._reading.release()
        return True

    def _read(self, seconds: float) -> None:
        ledger = self.open()
        if not isinstance(ledger, RedisLedger) or (self._last is not None and self.is_private):
            self.mailbox.wait(seconds)
            return
        with redis_or_error():
            wait = min(seconds, 0.02) if self.crew.was_used else seconds
            texts = pop(ledger.results_key, wait, AT_ONCE if self.is_private else 1)
        if texts:
            self.mailbox.put(*map(result_of, texts))

    def is_over(self) -> bool:
        """Whether no result will come any more: the pool is down, and all it left has been read."""
        if self.crew.is_running or self.standing().state not in ("closed", "gone"):
            return False
        if self._last is None:
            self.finish()
        self.read(0.0)
        return True

    # ---- figures and the end ---------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """The pool as it is now, or as it was when it went down."""
        if self._last is not None:
            return self._last
        return self.open().standing()

    def close(self) -> None:
        """Refuse new tasks, in every process that uses the pool."""
        ledger = self.open()
        self.intake.refuse()
        _, tickets, _ = ledger.close("closing")
        send(self.open(), tickets)
        self.crew.wake()

    def is_drained(self) -> bool:
        """Whether everything that was accepted has been finished."""
        standing = self.standing()
        if standing.state in ("closed", "gone"):
            return True
        return self.intake.is_settled and not self.crew.is_running and standing.is_drained

    def drop(self) -> list[str]:
        """Abandon what waits; the tickets of what still runs."""
        _, _, running = self.open().close("closed")
        return running

    def finish(self) -> None:
        """The pool is down: keep its last figures and what nobody has read, and leave nothing in Redis."""
        ledger = self.open()
        with self._opening:
            if self._last is not None:
                return
            ledger.close("closed")
            last = ledger.standing()
            self.crew.drop_all()
            self.replies.give_up()
            if isinstance(ledger, RedisLedger) and last.state != "gone":
                with redis_or_error():
                    while self.is_private and (texts := pop(ledger.results_key, 0.0, AT_ONCE)):
                        self.mailbox.put(*map(result_of, texts))
                if self.is_private or not last.running:
                    ledger.forget(keep_results=not self.is_private)
            self._last = last
        self.intake.stop()

    def is_down(self) -> bool:
        return self._last is not None

    def require_open(self) -> None:
        if self._last is not None:
            raise PoolClosedError


def _written(mailbox: Mailbox, replies: Replies, crew: Crew) -> Callable[[Sequence[Entry], BaseException | None], None]:
    def written(entries: Sequence[Entry], error: BaseException | None) -> None:
        if any(entry.owner for entry in entries):
            crew.wake()
        if error is None:
            return
        for entry in entries:
            _, _, number = entry.reply.partition(":")
            if number:
                replies.answer(int(number), error=error)
            elif entry.reply == TO_STREAM:
                mailbox.put(Result(error=error))

    return written


def _result(local: Local) -> Result:
    measured = Result(local.work.key, duration=local.seconds, worker_id=local.slot, worker=local.worker)
    if local.error is not None:
        measured.error = local.error
        return measured
    return as_result(local.value, measured)


def wait_until(condition: Callable[[], bool], timeout: float | None) -> bool:
    """Look until *condition* holds, or *timeout* seconds are over: whether it did."""
    deadline = None if timeout is None else time.monotonic() + timeout
    attempt = 0
    while not condition():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(poll(attempt))
        attempt += 1
    return True


async def wait_until_async(condition: Callable[[], bool]) -> None:
    """The same for a coroutine, without a limit; *condition* may block and runs in a thread."""
    attempt = 0
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(poll(attempt))
        attempt += 1


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines):
        engine.after_fork()


os.register_at_fork(after_in_child=_after_fork)
