"""``concurrent.futures.Executor`` on Celery workers: ``CeleryExecutor``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from itertools import islice
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, Unpack

from graft.compat.dispatcher import CallDispatcher
from graft.compat.futures import BrokenClusterError, executor_error
from graft.compat.map_call import MapCall
from graft.compat.routes import ExecutorOptions, Route
from graft.config.validation import at_least_one
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, ResultTimeout

__all__ = ["BrokenClusterError", "CeleryExecutor"]

P = ParamSpec("P")
T = TypeVar("T")
LATE: Final = "a result had not arrived when the timeout of map() ended"


class CeleryExecutor(Executor):
    """Runs calls on the workers, behind the interface of the standard executors.

    Source: ``concurrent.futures.Executor``.

    A future is running once its call has left this process, and can be cancelled before. Done-callbacks run on the
    thread that receives results, so they must not wait for other calls. Calls must not wait for each other either:
    calls of one callable may share an envelope, which runs them one after the other.

    The first Ctrl-C inside ``with``, or that ends the program, cancels the calls that have not begun, on workers too,
    and says how many run on; the standard executors wait for all of them.

    Calls that must stay in this process by rule R2 (closures over lists, bound methods, arguments that cannot be
    pickled) run on threads of this executor. After a fork the child may go on using the executor; earlier futures
    belong to the parent. ``loop.run_in_executor`` takes this executor; ``loop.set_default_executor`` does not, because
    it insists on a ThreadPoolExecutor.

    Differences from ProcessPoolExecutor: there are no processes to start, so no ``mp_context``, ``initializer`` and
    ``max_tasks_per_child``; while the broker is out of reach, calls fail with :class:`BrokenClusterError`, and later
    calls try again.

    Args:
        max_workers: single calls that may run at once on workers, and likewise for each map, and in this process.
            Default: unlimited.
        options: ``queue``, ``priority``, ``share``, ``retry``, ``timeout`` and ``place``, see :class:`ExecutorOptions`.
    """

    def __init__(self, max_workers: int | None = None, **options: Unpack[ExecutorOptions]) -> None:
        if max_workers is not None:
            at_least_one("max_workers", max_workers)
        self._dispatcher = CallDispatcher(max_workers, **options)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of ``fn(*args, **kwargs)``, with any error of making the call.

        Raises:
            RuntimeError: the executor has been shut down.
        """
        self._refuse_after_shutdown()
        return self._dispatcher.call(fn, args, kwargs, call="CeleryExecutor.submit")

    def map(  # Its buffersize came with Python 3.14.
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like ``map(fn, *iterables)``, on the workers: an iterator over the values, in order.

        Args:
            fn: called with one item of each iterable.
            iterables: read to the end at once, as the standard executors do, unless there is a *buffersize*.
            timeout: seconds from now; a value that arrives later ends the iteration in TimeoutError.
            chunksize: items in one envelope. Default: learnt from the pace of *fn*.
            buffersize: calls made ahead of the reader; the iterables may then be endless.

        Raises:
            RuntimeError: the executor has been shut down; the iterator raises it where a *buffersize* has left calls to
                make, and where a call raised StopIteration.
        """
        self._refuse_after_shutdown()
        at_least_one("chunksize", chunksize)
        if buffersize is not None:
            at_least_one("buffersize", buffersize)
        deadline = None if timeout is None else time.monotonic() + timeout
        batch_size = chunksize if chunksize > 1 else None
        route = self._dispatcher.route(fn, call="CeleryExecutor.map", batch_size=batch_size, is_map=True)
        rows = zip(*iterables, strict=False)
        if buffersize is not None:
            calls: deque[Future[Any]] = deque(
                self._dispatcher.follow(route, row, {}) for row in islice(rows, buffersize)
            )
            return _ahead(calls, (self._follow(route, row) for row in rows), deadline)
        if len(iterables) == 1:
            batch = self._dispatcher.map(route, list(iterables[0]), unpack=False)
        else:
            batch = self._dispatcher.map(route, [(row, {}) for row in rows], unpack=True)
        return _in_order(batch, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new calls. Accepted calls run; *cancel_futures* cancels those that have not begun."""
        self._dispatcher.close()
        if cancel_futures:
            self._dispatcher.cancel()
        if wait:
            self._dispatcher.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Wait for the accepted calls; after Ctrl-C cancel them, and say what runs on."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._dispatcher.interrupt()
        return super().__exit__(kind, error, trace)

    def _refuse_after_shutdown(self) -> None:
        if self._dispatcher.is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _follow(self, route: Route, row: tuple[Any, ...]) -> Future[Any]:
        self._refuse_after_shutdown()
        return self._dispatcher.follow(route, row, {})


# Both generators yield values without a name, so that a value the reader has dropped is not kept here. Both cancel the
# calls that have not begun when their reader leaves.


def _in_order(batch: MapCall, deadline: float | None) -> Iterator[Any]:
    try:
        with batch.bar():
            for position in range(batch.total):
                yield _taken(batch, position, deadline)
    finally:
        batch.cancel()


def _taken(batch: MapCall, position: int, deadline: float | None) -> Any:
    try:
        outcome = batch.result_of(position, _left(deadline))
    except ResultTimeout:
        raise TimeoutError(LATE) from None
    except BrokerUnavailable as error:
        raise executor_error(error)  # noqa: B904 - chained where it is made
    if isinstance(outcome.error, CancelledBatchError):
        raise CancelledError(str(outcome.error))
    return outcome.unwrap()


def _ahead(calls: deque[Future[Any]], more: Iterator[Future[Any]], deadline: float | None) -> Iterator[Any]:
    """The values of *calls*; each one read makes one of *more*. An error that ends *more* comes after all values."""
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
        call.cancel()  # Does nothing to a call that has ended.
        del call  # An error's traceback must not keep it.


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
