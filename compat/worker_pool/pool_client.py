"""One process's part in a pool, opened when it is first needed: its state, its sender, its threads, what comes back.

submit ─ Placing ─┬─ travels ───► Submission, a place ─► PoolSender ═ the road ═► worker: tasks/pools/slot ─► stream
                  └─ stays here ► Submission, a place ─► LocalThreads ─ take a slot like a worker ──────────► Mailbox
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Final, Literal
from uuid import uuid4

from graft.compat.placement import is_local
from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.local_state import LocalPool
from graft.compat.worker_pool.local_threads import DROPPED, LocalThreads
from graft.compat.worker_pool.mailbox import Mailbox, pop
from graft.compat.worker_pool.placement import Placed, Placing
from graft.compat.worker_pool.processor import as_result
from graft.compat.worker_pool.submission import Pool, Submission
from graft.config.deployment import part
from graft.tasks.envelope import Outcome
from graft.tasks.pools import due_messages
from graft.tasks.pools.state import Limits, PoolStatus, RedisPool, State, redis_or_error
from graft.tasks.sending.pool_batch import Ended, PoolTask
from graft.tasks.sending.pool_sender import Membership, PoolSender
from graft.tasks.sending.publisher import publisher
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger("graft.compat.worker_pool")

POLLS: Final = (0.001, 0.002, 0.005, 0.01, 0.02)  # Seconds between looks at a queue without room, or a pool's end.
AT_ONCE: Final = 256  # Pieces of the stream in one read.
KEPT_WITHIN: Final = 30.0  # Seconds for a task of a pool with an order to be in Redis.

LAST_WORDS: Final = 2.0  # Seconds that a process waits at its end for what it has accepted to be in Redis.

Destination = Literal["stream", "caller", "nobody"]
CallResult = tuple[Sequence[Outcome], float]  # Of the items of one task, and the seconds that they took.


def poll(attempt: int) -> float:
    """Seconds until the next look."""
    return POLLS[min(attempt, len(POLLS) - 1)]


class PoolClient:
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
        self.is_in_redis = not is_local() and not in_worker() and (place != "local" or name is not None)
        only_here = "" if self.is_in_redis else "the pool is kept in this process (GRAFT_MODE=local, or inside a task)"
        self.placing = Placing(kind, only_here, place)
        self.is_strict = is_strict
        self.is_started = False
        self._label = f"{kind} {name}" if name else kind
        self._limit = limit
        self._opening = threading.Lock()
        self._last: PoolStatus | None = None
        self._pool: Pool | None = None
        self._senders: list[PoolSender] = []  # The last one takes new tasks; the others have answers to come.
        self._finalizer: weakref.finalize[..., PoolClient] | None = None
        self.mailbox = Mailbox()
        self._reading = threading.Lock()
        self._room = threading.Condition()
        part(_Clients).add(self)

    # ---- opening ---------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._pool is not None

    def open(self) -> Pool:
        """The pool's state; made, with all that belongs to it, at the first call."""
        if self._pool is None:
            with self._opening:
                if self._pool is None:
                    if self.is_in_redis:
                        self._equip(RedisPool.open(self.name, self.limits, self._limit))
                    else:
                        self._equip(LocalPool(self.limits, self._limit))
        assert self._pool is not None
        return self._pool

    def _equip(self, pool: Pool) -> None:
        client = uuid4().hex
        self.mailbox = Mailbox()
        me = weakref.ref(self)
        self.threads = LocalThreads(pool, client, self.limits.workers, _calling(me, PoolClient.note_room))
        self._senders = []
        if isinstance(pool, RedisPool):
            self._membership = Membership(
                pool, client, self.is_strict, not self.is_private, self._label, self.limits.capacity,
                _calling(me, PoolClient.note_room),
            )  # fmt: skip
            self._membership.limit = self._limit if self.is_started else 0
        self.client = client
        self.submission = Submission(pool, client, _calling(me, PoolClient.note_state), is_strict=self.is_strict)
        self._pool = pool
        if self._finalizer is not None:
            self._finalizer.detach()  # It is the parent's.
        self._finalizer = weakref.finalize(self, _leave, self.submission, self._senders)

    def leave(self) -> None:
        """Use the pool no more; what was accepted runs in its turn."""
        _leave(self.submission, self._senders)

    def note_state(self, state: State, limit: int) -> None:
        """What the pool has become, here or by another process."""
        if state not in ("new", "running"):
            self.submission.refuse()
        self._set_limit(limit if state in ("running", "closing") else 0)
        if state in ("closed", "gone"):
            self._end_tasks()

    def _set_limit(self, limit: int) -> None:
        self.submission.note_room()
        if self.is_in_redis:
            self._membership.limit = limit
            for sender in self._senders:
                if sender.unsent:  # There may be more workers by now, too.
                    publisher().wake(sender)
        self.threads.wake()

    def after_fork(self) -> None:
        """A child has none of the parent's threads, and none of its results and futures."""
        self._opening, self._reading, self._room = threading.Lock(), threading.Lock(), threading.Condition()
        if self._pool is not None:
            self._equip(self._pool)

    def start(self) -> None:
        """Begin processing; once."""
        if not self.is_started:
            change = self.open().enter("running", self.client)
            self.is_started = True
            due_messages.publish(change.due)
            self._set_limit(self._limit)

    def resize(self, limit: int) -> None:
        """Run at most *limit* tasks at once from now on."""
        due_messages.publish(self.open().resize(limit).due)
        self._limit = limit
        self._set_limit(limit if self.is_started else 0)

    # ---- submitting ------------------------------------------------------------------------------------------------

    def task(
        self, placed: Placed, to: Destination, priority: float = 0.0, future: Future[CallResult] | None = None
    ) -> PoolTask:
        """*placed* as a task of the pool; *future* is for outcomes that go to the caller."""
        work, score = placed.work, -float(priority) or 0.0
        ended = _ended(self.mailbox, self.name, work.key, to, future)
        task = PoolTask(work.key, to, ended, score, work.timeout, placed.function, placed.frames, work.unpack)
        if placed.function is None:
            task.call = work.run
        elif self.is_strict:
            task.is_kept = threading.Event()
        return task

    def accept_now(self, task: PoolTask) -> bool:
        """Accept *task* if a place is reserved; never waits, and False says nothing about the queue."""
        if self.is_strict or not self.submission.take_now():
            return False
        self._send(task)
        return True

    def accept(self, task: PoolTask) -> bool:
        """Accept *task*; False when the queue is full."""
        if not self.submission.take(is_local=task.call is not None):
            return False
        self._send(task)
        return True

    def _send(self, task: PoolTask) -> None:
        if task.call is not None:
            self.threads.put(task, is_strict=self.is_strict)
            return
        while not self._senders or not self._senders[-1].add(task):
            with self._opening:
                if not self._senders or self._senders[-1].is_over:
                    left = [sender for sender in self._senders if not sender.burst.done()]
                    self._senders[:] = [*left, PoolSender(self._membership)]
        if task.is_kept is not None:  # What is accepted must be seen by the next worker that becomes free.
            task.is_kept.wait(KEPT_WITHIN)

    def note_room(self, is_much: bool = True) -> None:
        """A task of this process has ended; *is_much*: those who wait for room should look now."""
        self.submission.note_room()
        if is_much:
            with self._room:
                self._room.notify_all()

    def wait_for_room(self, seconds: float) -> None:
        """Until there may be room, and *seconds* at most."""
        with self._room:
            self._room.wait(min(seconds, self.submission.look_every))

    def withdraw(self, tasks: Sequence[PoolTask]) -> None:
        """Take out what has not begun of *tasks*; nobody waits for it any more."""
        try:
            self.threads.withdraw({task for task in tasks if task.call is not None})
            for sender in self._senders:
                sender.withdraw({task for task in tasks if task.call is None})
        except ConnectionError as error:
            logger.debug("tasks could not be withdrawn: %s", error)

    # ---- the stream of results -------------------------------------------------------------------------------------

    def read(self, seconds: float) -> bool:
        """Move results into the mailbox, waiting up to *seconds* for the first; False when somebody else is reading."""
        if not self._reading.acquire(blocking=False):
            return False
        try:
            pool = self.open()
            if not isinstance(pool, RedisPool) or (self._last is not None and self.is_private):
                self.mailbox.wait(seconds)
                return True
            with redis_or_error():
                wait = min(seconds, 0.02) if self.threads.was_used else seconds
                results = pop(pool.results_key, wait, AT_ONCE if self.is_private else 1)
            if results:
                self.mailbox.put(*results)
                self.submission.note_room()
        finally:
            self._reading.release()
        return True

    def is_over(self) -> bool:
        """Whether no result will come any more: the pool is down, and all it left has been read."""
        if self.threads.is_running or self.status().state not in ("closed", "gone"):
            return False
        if self._last is None:
            self.finish()
        self.read(0.0)
        return True

    # ---- figures and the end ---------------------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """The pool as it is now, or as it was when it went down."""
        return self._last or self.open().status()

    def close(self) -> None:
        """Refuse new tasks, in every process that uses the pool."""
        pool = self.open()
        self.submission.refuse()
        change = pool.enter("closing", self.client, self.submission.give_up())
        due_messages.publish(change.due)
        self._set_limit(self._limit)

    def is_drained(self) -> bool:
        """Whether everything that was accepted has been finished."""
        status = self.status()
        if status.state in ("closed", "gone"):
            return True
        is_answered = not self.threads.is_running and all(sender.burst.done() for sender in self._senders)
        return is_answered and status.is_drained

    def drop(self) -> list[str]:
        """Abandon what waits; the envelopes that still run."""
        change = self.open().enter("closed", self.client, self.submission.give_up())
        self._end_tasks()
        return [member[-36:] for member in change.running]

    def finish(self) -> None:
        """The pool is down: keep its last figures and what nobody has read, and leave nothing in Redis."""
        pool = self.open()
        with self._opening:
            if self._last is not None:
                return
            pool.enter("closed", self.client, self.submission.give_up())
            last = pool.status()
            self._end_tasks()
            if isinstance(pool, RedisPool) and last.state != "gone":
                with redis_or_error():
                    while self.is_private and (results := pop(pool.results_key, 0.0, AT_ONCE)):
                        self.mailbox.put(*results)
                if self.is_private or not last.running:
                    pool.forget(keep_results=not self.is_private)
            self._last = last
        self.submission.stop()

    def _end_tasks(self) -> None:
        """Nothing begins any more; whoever waits for an outcome waits no longer."""
        self.threads.drop_all()
        for sender in self._senders:
            sender.end()

    def is_down(self) -> bool:
        return self._last is not None

    def require_open(self) -> None:
        if self._last is not None:
            raise PoolClosedError


def _leave(submission: Submission, senders: Sequence[PoolSender]) -> None:
    """Nobody holds the pool here any more, or the process ends: what was accepted waits in Redis for its turn."""
    submission.stop()
    is_ending = threading.current_thread() is threading.main_thread()
    if is_ending and submission.thread is not None:
        submission.thread.join(LAST_WORDS)  # Its last call may have slots to give away: their messages must get out.
    for sender in senders:
        sender.leave(LAST_WORDS if is_ending else 0.0)


def _calling(client: weakref.ref[PoolClient], method: Callable[..., None]) -> Callable[..., None]:
    """Calls *method* of the client, for as long as somebody holds it."""

    def call(*arguments: Any) -> None:
        if (one := client()) is not None:
            method(one, *arguments)

    return call


def _ended(mailbox: Mailbox, pool: str, key: Any, to: Destination, future: Future[CallResult] | None) -> Ended:
    def ended(outcomes: Sequence[Outcome], seconds: float = 0.0, slot: int = -1, worker: str = "") -> None:
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if future is not None:
            with suppress(InvalidStateError):  # Answered before, or given up.
                future.set_result((outcomes, seconds))
        elif outcomes is DROPPED:
            return
        elif to == "stream":
            measured = Result(key, None, error, seconds, slot, worker)
            mailbox.put(measured if error is not None else as_result(outcomes[0].value, measured))
        elif error is not None:
            logger.error("a task spawned in pool %s failed: %r", pool, error)

    return ended


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


class _Clients:
    """The pools of this process, which come along into a forked child."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[PoolClient] = weakref.WeakSet()

    def add(self, client: PoolClient) -> None:
        self._all.add(client)

    def after_fork(self) -> None:
        for client in list(self._all):
            client.after_fork()
