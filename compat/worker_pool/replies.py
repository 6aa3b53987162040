"""What comes back to this process: a queue of results, and futures of calls that are awaited.

A task that ran here answers directly. One that ran on a worker left its outcome in the pool's list of results, or in
this process's list of replies, which one thread reads for as long as somebody waits.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final

import redis

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import TaskCancelled
from graft.compat.worker_pool.processor import as_result
from graft.config.redis_client import shared
from graft.tasks.errors import EnvelopeError, TaskQueueError
from graft.tasks.pools.state import RedisLedger
from graft.tasks.pools.worker import JobOutcome

logger = logging.getLogger("graft.compat.worker_pool")

BLOCK: Final = 0.5  # Seconds that one read of the replies waits.
AT_ONCE: Final = 256


class Mailbox:
    """Results that have arrived in this process and have not been delivered, in order of arrival."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._results: deque[Result] = deque()

    def put(self, *results: Result) -> None:
        with self.changed:
            self._results.extend(results)
            self.changed.notify_all()

    def take(self) -> Result | None:
        with self.changed:
            return self._results.popleft() if self._results else None

    def wait(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self._results, seconds)


class Replies:
    """Futures of this process's calls, by the number that their reply carries."""

    def __init__(self, client: str, ledger: RedisLedger | None) -> None:
        self.client = client
        self._ledger = ledger
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._futures: dict[int, Future[JobOutcome | Any]] = {}
        self._thread: threading.Thread | None = None

    def expect(self, *, remote: bool) -> tuple[int, Future[Any]]:
        """A number and the future of what will be answered to it: a JobOutcome if *remote*, else the value."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # Whoever cancels withdraws the task; the future ends by its answer.
        with self._lock:
            number = next(self._numbers)
            self._futures[number] = future
            if remote and self._ledger is not None and self._thread is None:
                self._thread = threading.Thread(target=self._read, name="graft-pool-replies", daemon=True)
                self._thread.start()
        return number, future

    def answer(self, number: int, value: Any = None, error: BaseException | None = None) -> None:
        """Resolve the future behind *number*; one that nobody holds any more is passed over."""
        with self._lock:
            future = self._futures.pop(number, None)
        if future is None:
            return
        try:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        except InvalidStateError:
            logger.debug("reply %d was answered twice", number)

    def cancel(self, number: int) -> None:
        """Nothing will be answered to *number*."""
        self.answer(number, error=TaskCancelled())

    def give_up(self) -> None:
        """The pool is down: take in what has been answered, and end the wait for the rest."""
        try:
            self._take(0.0)
        except (redis.RedisError, OSError) as error:
            logger.warning("replies of a pool that is down could not be read: %s", error)
        with self._lock:
            left = list(self._futures)
        for number in left:
            self.cancel(number)

    def _read(self) -> None:
        while True:
            with self._lock:
                if not self._futures:
                    self._thread = None
                    return
            try:
                self._take(BLOCK)
            except (redis.RedisError, OSError) as error:
                logger.debug("replies cannot be read: %s", error)
                threading.Event().wait(BLOCK)

    def _take(self, wait: float) -> None:
        if self._ledger is None:
            return
        for text in pop(self._ledger.replies_key(self.client), wait, AT_ONCE):
            number, _, sealed = text.decode().partition(" ")
            if not sealed:
                self.cancel(int(number))
                continue
            try:
                self.answer(int(number), JobOutcome.open(sealed))
            except TaskQueueError as error:
                self.answer(int(number), error=error)


def pop(key: str, wait: float, count: int) -> list[bytes]:
    """Up to *count* elements from the head of the list *key*, waiting up to *wait* seconds for the first."""
    first: list[bytes] = []
    if wait > 0.002:  # Redis 6.2 takes less than a millisecond for "without end".
        found = shared().blpop(key, timeout=wait)
        if found is None:
            return []
        first = [found[1]]
        count -= 1
    return first + (shared().lpop(key, count) or [] if count else [])


def result_of(text: bytes) -> Result:
    """The result behind one element of a pool's list; one that cannot be opened here is a result with that error."""
    try:
        outcome = JobOutcome.open(text.decode())
    except Exception as error:
        return Result(error=error)
    measured = Result(
        outcome.key, duration=outcome.seconds, worker_id=outcome.slot, worker=outcome.worker
    )  # What follows is the output's own.
    if not outcome.succeeded:
        measured.error = outcome.error
        return measured
    try:
        return as_result(outcome.value, measured)
    except Exception as error:
        measured.error = EnvelopeError(f"the output of task {outcome.key} cannot be opened here: {error}")
        return measured
