"""``concurrent.futures.Executor`` on Celery workers: ``CeleryExecutor``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from itertools import islice
from typing import Any, Final, ParamSpec, TypeVar

from graft.compat.bridge import Place
from graft.compat.dispatcher import Route, Switchboard
from graft.compat.futures import BrokenClusterError
from graft.compat.map_call import MapCall
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, ResultTimeout
from graft.tasks.policy import RetryPolicy

__all__ = ["BrokenClusterError", "CeleryExecutor"]

P = ParamSpec("P")
T = TypeVar("T")
LATE: Final = "a result had not arrived when the timeout of map() ended"


class CeleryExecutor(Executor):
    """Runs calls on the workers, behind the interface of the standard executors.

    Source: ``concurrent.futures.Executor``.

    A future is running once its call has left this process, and can be cancelled before. Done-callbacks run on the
    thread that hears results, so they must not wait for other calls. Calls must not wait for each other either: those
    of one callable may share an envelope, whose calls run one after the other.

    What must stay with the caller by rule R2 (closures over lists, bound methods, arguments that cannot be pickled)
    runs on threads of this executor. After a fork the child may go on using the executor; futures made before belong to
    the parent. ``loop.run_in_executor`` takes this executor, ``loop.set_default_executor`` does not: it insists on a
    ThreadPoolExecutor.

    Differences from ProcessPoolExecutor: there are no processes to start, so no ``mp_context``, ``initializer`` and
    ``max_tasks_per_child``; an outage of the broker fails the calls that it meets with :class:`BrokenClusterError`, and
    later calls try again.

    Args:
        max_workers: single calls under way at once, and likewise for each map; as many as the workers take unless
            given. The bound costs speed: each call then travels in an envelope of its own.
        queue: one of config/queues.py; by default ``batch``, and ``io`` for async callables.
        priority: larger goes first.
        retry: a RetryPolicy, or a number of retries, for calls that raise; none unless given.
        timeout: seconds that one call may run; it ends in ItemTimeoutError.
        place: "cluster" or "local" instead of what the callable would choose.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        queue: str | None = None,
        priority: float = 0,
        retry: RetryPolicy | int | None = None,
        timeout: float | None = None,
        place: Place | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        self._board = Switchboard(
            max_workers=max_workers, queue=queue, priority=priority, retry=retry, timeout=timeout, place=place
        )

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of ``fn(*args, **kwargs)``; what is wrong with the call is in its future.

        Raises:
            RuntimeError: the executor has been shut down.
        """
        self._refuse_after_shutdown()
        return self._board.call(fn, args, kwargs, call="CeleryExecutor.submit")

    def map(  # Its buffersize came with Python 3.14.
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like ``map(fn, *iterables)``, on the workers: values in order, read as they are needed.

        Args:
            fn: called with one item of each iterable.
            iterables: read to the end at once, as the standard executors do, unless there is a *buffersize*.
            timeout: seconds from now after which a value that has not arrived ends the iteration in TimeoutError.
            chunksize: items in one envelope; with 1 their number is learnt from the pace of *fn*.
            buffersize: calls made ahead of the reader. The iterables may then be endless; they are read as values are.

        Raises:
            RuntimeError: the executor has been shut down; the iterator raises it where a *buffersize* has left calls to
                make, and where a call raised StopIteration.
        """
        self._refuse_after_shutdown()
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize} must be at least 1")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize={buffersize} must be at least 1")
        deadline = None if timeout is None else time.monotonic() + timeout
        batch_size = chunksize if chunksize > 1 else None
        route = self._board.route(fn, call="CeleryExecutor.map", batch_size=batch_size, is_map=True)
        rows = zip(*iterables, strict=False)
        if buffersize is not None:
            calls: deque[Future[Any]] = deque(self._board.follow(route, row, {}) for row in islice(rows, buffersize))
            return _ahead(calls, (self._follow(route, row) for row in rows), deadline)
        if len(iterables) == 1:
            batch = self._board.map(route, list(iterables[0]), unpack=False)
        else:
            batch = self._board.map(route, [(row, {}) for row in rows], unpack=True)
        return _in_order(batch, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that were taken are made, unless *cancel_futures* keeps them from beginning."""
        self._board.close()
        if cancel_futures:
            self._board.cancel()
        if wait:
            self._board.wait()

    def _refuse_after_shutdown(self) -> None:
        if self._board.is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _follow(self, route: Route, row: tuple[Any, ...]) -> Future[Any]:
        self._refuse_after_shutdown()
        return self._board.follow(route, row, {})


# Both generators yield values without a name: one that the reader has dropped must not be kept here. And both keep what
# has not begun from running when their reader leaves them.


def _in_order(batch: MapCall, deadline: float | None) -> Iterator[Any]:
    try:
        for position in range(batch.total):
            yield _taken(batch, position, deadline)
    finally:
        batch.cancel()


def _taken(batch: MapCall, position: int, deadline: float | None) -> Any:
    try:
        outcome = batch.take(position, _left(deadline))
    except ResultTimeout:
        raise TimeoutError(LATE) from None
    except BrokenClusterError:
        raise
    except BrokerUnavailable as error:
        raise BrokenClusterError(str(error)) from error
    if isinstance(outcome.error, CancelledBatchError):
        raise CancelledError(str(outcome.error))
    return outcome.unwrap()


def _ahead(calls: deque[Future[Any]], more: Iterator[Future[Any]], deadline: float | None) -> Iterator[Any]:
    """The values of *calls*; for each that is read, one of *more* is made. What ends *more* comes after all values."""
    failure: Exception | None = None
    is_more = True
    try:
        while calls:
            if is_more:
                try:
                    calls.append(next(more))
                except StopIteration:
                    is_more = False
                except Exception as error:
                    is_more, failure = False, error
            yield _result(calls.popleft(), deadline)
    finally:
        for call in calls:
            call.cancel()
    if failure is not None:
        raise failure


def _result(call: Future[Any], deadline: float | None) -> Any:
    try:
        if not wait([call], _left(deadline)).done:
            raise TimeoutError(LATE)
        return call.result()
    finally:
        call.cancel()  # Does nothing to one that has ended.
        del call  # An error's traceback must not keep it.


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
