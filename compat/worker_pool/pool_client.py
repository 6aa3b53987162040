"""One process's part in a pool, opened when it is first needed: its state, its sender, its threads, what comes back.

submit ─ Placing ─┬─ travels ───► Submission, a place ─► PoolSender ═ the road ═► worker: tasks/pools/slot ─► stream
                  └─ stays here ► Submission, a place ─► LocalThreads ─ take a slot like a worker ──────────► Mailbox
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Final, Literal, NamedTuple
from uuid import uuid4

from graft.compat import old_way
from graft.compat.placement import is_local
from graft.compat.worker_pool.delivery import Delivery
from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.local_state import LocalPool
from graft.compat.worker_pool.local_threads import LocalThreads
from graft.compat.worker_pool.mailbox import Mailbox
from graft.compat.worker_pool.placement import Placed, Placing
from graft.compat.worker_pool.process_end import calling, follow_forks, leave
from graft.compat.worker_pool.submission import Pool, Submission
from graft.tasks.envelope import Outcome
from graft.tasks.errors import CancelledBatchError
from graft.tasks.pools import due_messages
from graft.tasks.pools.state import Limits, PoolStatus, RedisPool, State
from graft.tasks.sending.pool_batch import CallResult, Destination, PoolTask
from graft.tasks.sending.pool_sender import Membership, PoolSender
from graft.tasks.sending.publisher import publisher
from graft.tasks.worker_runtime import in_worker

logger = logging.getLogger("graft.compat.worker_pool")

KILLED: Final = "it ran when advanced_shutdown() of its worker pool ended its process"
KEPT_WITHIN: Final = 30.0  # Seconds for a task of a pool with an order to be in Redis.


class Dropped(NamedTuple):
    """What runs in a pool that goes down: the members of its envelopes, and those tasks of them that are known here."""

    running: Sequence[str]
    tasks: Mapping[str, Sequence[PoolTask]]

    @property
    def envelopes(self) -> list[str]:
        return [member[-36:] for member in self.running]


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
        self.is_alone = self.is_private  # No other process uses it; a child made by fork would.
        self.name = name or f"unnamed-{uuid4().hex}"
        is_watched = name is None and place is None and old_way.watcher() is not None
        self.is_in_redis = not (is_local() or in_worker() or is_watched) and (place != "local" or name is not None)
        only_here = "" if self.is_in_redis else "the pool is kept in this process (GRAFT_MODE=local, or inside a task)"
        only_here = old_way.REASON if is_watched else only_here
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
        follow_forks(self)

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
        self.deliver = Delivery(self.mailbox, self.name)
        me = weakref.ref(self)
        self.submission = Submission(pool, client, calling(me, PoolClient.note_state), is_strict=self.is_strict)
        self.threads = LocalThreads(pool, client, self.limits.workers, self.submission.note_room)
        self._senders = []
        if isinstance(pool, RedisPool):
            self._membership = Membership(
                pool, client, self.is_strict, not self.is_private, self._label, self.limits.capacity,
                self.submission.note_room, self.mailbox.note_rows, self.is_alone,
            )  # fmt: skip
            self._membership.limit = self._limit if self.is_started else 0
        self.client = client
        self._pool = pool
        if self._finalizer is not None:
            self._finalizer.detach()  # It is the parent's.
        self._finalizer = weakref.finalize(self, leave, self.submission, self._senders)

    def leave(self) -> None:
        """Use the pool no more; what was accepted runs in its turn."""
        leave(self.submission, self._senders)

    def note_state(self, state: State, limit: int) -> None:
        """What the pool has become, here or by another process."""
        if state not in ("new", "running"):
            self.submission.refuse()
        self._set_limit(limit if state in ("running", "closing") else 0)
        if state in ("closed", "gone"):
            self._end_tasks()

    def _set_limit(self, limit: int) -> None:
        self.submission.note_room(is_much=False)
        if self.is_in_redis:
            self._membership.limit = limit
            for sender in self._senders:
                if sender.unsent:  # There may be more workers by now, too.
                    publisher().wake(sender)
        self.threads.wake()

    def before_fork(self) -> None:
        """Two processes will use the pool: from now on its results go where both can read them."""
        self.is_alone = False
        if self.is_in_redis and self._pool is not None:
            self._membership.is_reported = False

    def after_fork(self) -> None:
        """A child has none of the parent's threads, and none of its results and futures."""
        self._opening = threading.Lock()
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
        task = PoolTask(work.key, to, self.deliver, score, work.timeout, placed.function, placed.frames, work.unpack)
        task.future = future
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

    def withdraw(self, tasks: Sequence[PoolTask]) -> None:
        """Take out what has not begun of *tasks*; nobody waits for it any more."""
        try:
            self.threads.withdraw({task for task in tasks if task.call is not None})
            for sender in self._senders:
                sender.withdraw({task for task in tasks if task.call is None})
        except ConnectionError as error:
            logger.debug("tasks could not be withdrawn: %s", error)

    def cancel(self, tasks: Collection[PoolTask], error: BaseException, *, running: bool) -> None:
        """Have *tasks* end with *error*, those that run too if *running*: not in threads of this process.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        for task in tasks:
            task.ends_running, task.cancelled = running, error
        self.threads.withdraw({task for task in tasks if task.call is not None}, [Outcome(0, error=error)])
        for sender in self._senders:
            sender.withdraw({task for task in tasks if task.call is None}, error, running=running)

    def unfinished(self, key: object) -> list[PoolTask]:
        """The tasks with this key for the stream of results that were submitted here and have no outcome yet."""
        if self._pool is None:
            return []
        sent = {task for sender in self._senders for task in sender.burst.tasks()}
        return [task for task in {*sent, *self.threads.waiting()} if task.key == key and task.to == "stream"]

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
        if self.threads.is_running or not all(sender.burst.done() for sender in self._senders):
            return self.status().state in ("closed", "gone")
        status = self.status()
        return status.state in ("closed", "gone") or status.is_drained

    def drop(self) -> Dropped:
        """Abandon what waits; what still runs."""
        change = self.open().enter("closed", self.client, self.submission.give_up())
        tasks: dict[str, list[PoolTask]] = {}
        for sender in self._senders:
            tasks.update(sender.tasks_of(change.running))
        self._end_tasks()
        return Dropped(change.running, tasks)

    def note_killed(self, dropped: Dropped) -> None:
        """The processes that ran what was *dropped* are gone: its tasks have failed, and have their results."""
        pool = self.open()
        for member, slot, seconds in pool.killed(dropped.running) if isinstance(pool, RedisPool) else ():
            for task in (tasks := dropped.tasks.get(member, ())):
                task.ended([Outcome(0, error=CancelledBatchError(KILLED))], seconds / len(tasks), slot)

    def finish(self) -> None:
        """The pool is down: keep its last figures and what nobody has read, and leave nothing in Redis."""
        pool = self.open()
        with self._opening:
            if self._last is not None:
                return
            pool.enter("closed", self.client, self.submission.give_up())
            last = pool.status()
            self._end_tasks()
            if isinstance(pool, RedisPool) and last.state != "gone" and (self.is_alone or not last.running):
                pool.forget(keep_results=not self.is_alone)
            self._last = last
        self.mailbox.put()  # Readers look once more, and find the end.
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
