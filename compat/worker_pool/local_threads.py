"""Threads for what cannot leave this process: they take slots of the pool like any worker.

One thread at a time looks for a slot; the one that has it leaves the looking to the next.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from graft.compat.worker_pool.delivery import DROPPED
from graft.compat.worker_pool.submission import Pool
from graft.config.deployment import settings
from graft.tasks.envelope import Outcome
from graft.tasks.errors import BrokerUnavailable, ItemTimeoutError
from graft.tasks.pools import due_messages
from graft.tasks.pools.state import HAS_TO_WAIT, Waiting
from graft.tasks.sending.pool_batch import PoolTask

logger = logging.getLogger("graft.compat.worker_pool")

LOOK_EVERY: Final = 0.01
REST: Final = 1.0  # Seconds without work after which a thread ends.


class LocalThreads:
    """Up to *size* threads of this process, for one pool. *answered* is called for each task that has ended."""

    def __init__(self, pool: Pool, client: str, size: int, answered: Callable[[], None]) -> None:
        self._pool, self._client, self._size, self._answered = pool, client, size, answered
        self._changed = threading.Condition()
        self._looking = threading.Lock()
        self._waiting: list[tuple[float, int, int, PoolTask]] = []  # The best first; equals go by time.
        self._parked: set[PoolTask] = set()
        self._threads = self._running = 0
        self.was_used = False

    @property
    def is_running(self) -> bool:
        """Whether a task runs here, or has run and is about to be delivered."""
        return self._running > 0

    def put(self, task: PoolTask, *, is_strict: bool) -> None:
        """Run *task* when it has a slot; with *is_strict* it stands in the pool's index when this returns."""
        self.was_used = True
        if is_strict:
            self._park(task)
        with self._changed:
            heapq.heappush(self._waiting, (task.score, task.since, id(task), task))
        self.wake()

    def wake(self) -> None:
        """There may be a slot now."""
        with self._changed:
            if self._waiting and self._threads < self._size and not self._looking.locked():
                self._start()
            self._changed.notify_all()

    def withdraw(self, tasks: set[PoolTask], outcomes: Sequence[Outcome] = DROPPED) -> None:
        """Take those of *tasks* out that have not begun; they end with *outcomes*."""
        out = [task for task in tasks if self._take(task)]
        parked = [task for task in out if task in self._parked]
        if parked:
            due_messages.publish(self._pool.withdraw(self._client, dict.fromkeys(map(self._member, parked), 1))[1])
        if len(out) > len(parked):
            due_messages.publish(self._pool.abandon(self._client, len(out) - len(parked)))
        for task in out:
            task.ended(outcomes)

    def waiting(self) -> list[PoolTask]:
        """What has not begun."""
        with self._changed:
            return [entry[-1] for entry in self._waiting]

    def drop_all(self) -> None:
        """The pool is down: what has not begun never will."""
        with self._changed:
            waiting, self._waiting = self._waiting, []
        for *_, task in waiting:
            task.ended(DROPPED)

    def _member(self, task: PoolTask) -> str:
        return f"{task.since:016x}{self._client}{id(task):x}"

    def _park(self, task: PoolTask) -> None:
        due = self._pool.park([Waiting(self._member(task), task.score, f"@{self._client}")])
        self._parked.add(task)
        due_messages.publish(due or ())

    def _take(self, task: PoolTask) -> bool:
        """Whether *task* was waiting, and is not any more."""
        with self._changed:
            entry = (task.score, task.since, id(task), task)
            if entry not in self._waiting:
                return False
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)
            return True

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="graft-pool-local", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._looking:
                found = self._look()
            with self._changed:
                if found is None:
                    self._threads -= 1
                    if self._waiting and not self._threads:  # It came in between.
                        self._start()
                    return
                if self._waiting and self._threads < self._size:
                    self._start()
            try:
                self._run(*found)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _look(self) -> tuple[PoolTask, int] | None:
        """A task with its slot; None when there has been nothing to run for a while."""
        rested = time.monotonic()
        while True:
            with self._changed:
                if not self._waiting:
                    if time.monotonic() - rested > REST:
                        return None
                    self._changed.wait(REST / 4)
                    continue
                best = heapq.nsmallest(self._size, self._waiting)
            rested = time.monotonic()
            for *_, task in best:  # The slot may have been given to one that was the best before another came.
                if (slot := self._begin(task)) is not None:
                    return task, slot
            with self._changed:
                self._changed.wait(LOOK_EVERY)

    def _begin(self, task: PoolTask) -> int | None:
        """The slot in which *task* runs now, if there is one."""
        try:
            slot = self._pool.begin(self._member(task), task.score, f"@{self._client}")
            if slot == HAS_TO_WAIT and task not in self._parked:
                self._park(task)
        except BrokerUnavailable as error:
            logger.debug("no task can be begun: %s", error)
            return None
        if slot < 0:
            return None
        self._running += 1
        if not self._take(task):  # Withdrawn meanwhile.
            self._running -= 1
            self._finish(task, 0, 0, 0.0)
            return None
        return slot

    def _run(self, task: PoolTask, slot: int) -> None:
        """Call *task*. A thread cannot be stopped: at its limit the error goes out, and the slot stays taken."""
        began = time.perf_counter()
        is_delivered = threading.Lock()

        def deliver(outcomes: Sequence[Outcome]) -> None:
            if is_delivered.acquire(blocking=False):
                task.ended(outcomes, time.perf_counter() - began, slot, f"caller {os.getpid()}")

        late = ItemTimeoutError(f"the item ran longer than its limit of {task.timeout or 0:g} s")
        timer = threading.Timer(task.timeout or 0.0, deliver, [[Outcome(0, error=late)]])
        timer.daemon = True
        if task.timeout:
            timer.start()
        assert task.call is not None
        try:
            outcomes = [Outcome(*pair) for pair in enumerate(task.call())]
        except BaseException as error:
            outcomes = [Outcome(0, error=error)]
        timer.cancel()
        has_failed = is_delivered.locked() or (outcomes[:1] and outcomes[0].error is not None)
        # Before it is delivered: whoever has the result finds it counted.
        self._finish(task, 1, int(bool(has_failed)), time.perf_counter() - began)
        deliver(outcomes)

    def _finish(self, task: PoolTask, tasks: int, failed: int, seconds: float) -> None:
        self._parked.discard(task)
        end = time.monotonic() + settings().outage_grace
        while True:
            try:
                due_messages.publish(self._pool.finish(self._member(task), self._client, tasks, failed, seconds))
                self._answered()
                return
            except BrokerUnavailable as error:
                if time.monotonic() > end:
                    logger.error("a task that ran here could not be recorded as finished: %s", error)
                    return
                time.sleep(0.1)
