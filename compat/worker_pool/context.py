"""Context: what Go's context gives to a group of tasks, that is an end for all of them, by hand or by a deadline."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from graft.compat.worker_pool.errors import ContextCancelledError, ContextError, DeadlineExceededError
from graft.config.validation import seconds
from graft.tasks.errors import BrokerUnavailable

if TYPE_CHECKING:
    from graft.compat.worker_pool.pool_client import PoolClient
    from graft.tasks.sending.pool_batch import PoolTask

logger = logging.getLogger("graft.compat.worker_pool")
AGAIN: Final = 2.0  # Seconds between two attempts to withdraw tasks while Redis does not answer.


class Context:
    """A group of tasks that end together: when it is cancelled, when its time is over, or with its parent.

    Tasks that were submitted with it, to any pools, and have not begun do not begin. Those that run on workers are
    ended too, unless *running* is false, as ``cancel(running=True)`` of a batch ends them. What runs in a thread of the
    caller goes on, and so does a short task that shares a message with others. Each task has its Result, whose error is
    that of :meth:`err`; where the pool has a name and the task had been sent, it is a CancelledBatchError. While Redis
    does not answer, what was sent goes on, and is withdrawn when it answers again.

    ``with Context(5.0) as context`` cancels at the end of the block what has not ended by then.

    Args:
        timeout: seconds from now. Default: no deadline of its own.
        parent: ends this one too.
        running: end what runs.
    """

    def __init__(self, timeout: float | None = None, *, parent: Context | None = None, running: bool = True) -> None:
        now = time.monotonic()
        own = None if timeout is None else now + seconds("timeout", timeout)
        inherited = None if parent is None else parent._ends_at
        self._ends_at: float | None = min((at for at in (own, inherited) if at is not None), default=None)
        self._ends_running = running
        self._lock = threading.Lock()
        self._tasks: weakref.WeakKeyDictionary[PoolClient, weakref.WeakSet[PoolTask]] = weakref.WeakKeyDictionary()
        self._children: weakref.WeakSet[Context] = weakref.WeakSet()
        self._error: ContextError | None = None
        self._ended = threading.Event()
        self._timer: threading.Timer | None = None
        if own is not None:
            self._timer = threading.Timer(max(0.0, own - now), self._end, [DeadlineExceededError()])
            self._timer.daemon = True
            self._timer.start()
        if parent is not None:
            parent._adopt(self)

    def cancel(self) -> None:
        """End it now; a second call does nothing. Blocks for a few round trips to Redis."""
        self._end(ContextCancelledError())

    def err(self) -> ContextError | None:
        """Why it has ended: ContextCancelledError, DeadlineExceededError, or None while it goes on."""
        return self._error

    @property
    def left(self) -> float | None:
        """Seconds until its deadline, at least 0; None without one."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, up to *timeout* seconds if given; whether it has."""
        return self._ended.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    # ---- parts -----------------------------------------------------------------------------------------------------

    def require_live(self) -> None:
        """Raise the error of a context that has ended."""
        if self._error is not None:
            raise self._error

    def add(self, client: PoolClient, task: PoolTask) -> None:
        """*task* belongs to it from now on; it is cancelled at once where the context has ended meanwhile."""
        with self._lock:
            self._tasks.setdefault(client, weakref.WeakSet()).add(task)
            error = self._error
        if error is not None:
            self._cancel(client, [task], error)

    def _adopt(self, child: Context) -> None:
        with self._lock:
            self._children.add(child)
            error = self._error
        if error is not None:
            child._end(error)

    def _end(self, error: ContextError) -> None:
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            tasks = {client: list(its) for client, its in self._tasks.items()}
            self._tasks.clear()
            children = list(self._children)
        if self._timer is not None:
            self._timer.cancel()
        for child in children:
            child._end(error)
        for client, its in tasks.items():
            self._cancel(client, its, error)
        self._ended.set()

    def _cancel(
        self, client: PoolClient, tasks: list[PoolTask], error: ContextError, *, is_first: bool = True
    ) -> None:  # fmt: skip
        try:
            client.cancel(tasks, error, running=self._ends_running)
        except BrokerUnavailable as outage:
            if is_first:
                logger.warning(
                    "%d tasks of pool %s go on though their context has ended, until Redis answers: %s",
                    len(tasks), client.name, outage,
                )  # fmt: skip
            again = threading.Timer(AGAIN, self._cancel, [client, tasks, error], {"is_first": False})
            again.daemon = True
            again.start()
