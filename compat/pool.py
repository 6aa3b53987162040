"""``multiprocessing.Pool`` on Celery workers: ``Pool``; ``register_joblib`` for joblib."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

from graft.compat.bridge import Place
from graft.compat.dispatcher import Switchboard
from graft.compat.pool_initializer import run_initialised
from graft.compat.pool_iterators import WINDOW, Feed, IMapIterator
from graft.compat.pool_results import AsyncResult, Callback, terminated
from graft.tasks.ids import new_id
from graft.tasks.policy import RetryPolicy

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError", "register_joblib"]

TimeoutError = multiprocessing.TimeoutError


class Pool:
    """Runs calls on the workers, behind the interface of ``multiprocessing.Pool``, which is its source.

    What must stay with the caller by rule R2 (closures over lists, bound methods, arguments that cannot be pickled,
    locks among them) runs on threads of this pool.

    Differences from multiprocessing: ``terminate`` cannot stop what runs on a worker, and results that will not be had
    any more raise CancelledBatchError instead of never being ready; ``imap`` reads its input a bounded way ahead of its
    reader, and no further once that has left; a call that raises StopIteration does not end an ``imap`` in silence.

    Args:
        processes: calls under way at once; as many as the workers take unless given.
        initializer: called as ``initializer(*initargs)`` in each worker process before this pool's first call there.
            The processes are shared and outlive the pool, and so does what it leaves there. Where function,
            initializer or arguments cannot travel, all of it happens in the caller. An error of the initializer's is
            that of the call.
        initargs: see *initializer*.
        maxtasksperchild: accepted; when a pool process is replaced is the worker's own setting
            (``--max-tasks-per-child``).
        context: accepted; no process is started here.
        queue: one of config/queues.py; by default ``batch``, and ``io`` for async callables.
        priority: larger goes first.
        retry: a RetryPolicy, or a number of retries, for calls that raise; none unless given.
        timeout: seconds that one call may run; it ends in ItemTimeoutError.
        place: "cluster" or "local" instead of what the callable would choose.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        queue: str | None = None,
        priority: float = 0,
        retry: RetryPolicy | int | None = None,
        timeout: float | None = None,
        place: Place | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"processes={processes} must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._board = Switchboard(
            max_workers=processes, queue=queue, priority=priority, retry=retry, timeout=timeout, place=place
        )
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._id = new_id()

    # ---- one call ---------------------------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """The value of ``func(*args, **kwds)``, or its error."""
        return self._apply("Pool.apply", func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Start ``func(*args, **kwds)``. Callbacks run on the thread that hears results, and must not wait for it."""
        return self._apply("Pool.apply_async", func, args, kwds, callback, error_callback)

    def _apply(
        self,
        name: str,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        self._refuse_after_close()
        future = self._board.call(self._prepared(func), tuple(args), dict(kwds or {}), call=name, shown=func)
        return AsyncResult(future, future.result, callback, error_callback)

    # ---- maps -------------------------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """The values of *func* for every item, in order, or the error that came first once all have ended.

        *chunksize* is the number of items in one envelope; learnt from the pace of *func* unless given.
        """
        values: list[Any] = self._map("Pool.map", func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        return self._map("Pool.map_async", func, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """Like :meth:`map`, with each item spread out as the arguments."""
        values: list[Any] = self._map("Pool.starmap", func, _spread(iterable), chunksize, unpack=True).get()
        return values

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        items = _spread(iterable)
        return self._map("Pool.starmap_async", func, items, chunksize, callback, error_callback, unpack=True)

    def _map(
        self,
        name: str,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        *,
        unpack: bool = False,
    ) -> AsyncResult:
        self._refuse_after_close()
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize={chunksize} must be at least 1")
        items: Sequence[Any] = list(iterable)
        route = self._board.route(self._prepared(func), call=name, batch_size=chunksize, is_map=True, shown=func)
        batch = self._board.map(route, items, unpack=unpack)
        return AsyncResult(batch.ended, batch.values, callback, error_callback)

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Values in order; a thread reads the input a bounded way ahead of the reader: it may be endless, or slow."""
        return self._imap("Pool.imap", func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """The same in the order in which values arrive."""
        return self._imap("Pool.imap_unordered", func, iterable, chunksize, ordered=False)

    def _imap(
        self, name: str, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> IMapIterator:
        self._refuse_after_close()
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize} must be at least 1")
        batch_size = chunksize if chunksize > 1 else None
        route = self._board.route(self._prepared(func), call=name, batch_size=batch_size, is_map=True, shown=func)
        feed = Feed(ordered=ordered, window=max(WINDOW, 4 * chunksize))
        feed.start(lambda item: self._board.follow(route, (item,), {}), iter(iterable))
        self._board.add_stream(feed)
        return IMapIterator(feed)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; those that were taken are made."""
        self._board.close()

    def terminate(self) -> None:
        """Take no more calls, and keep what has not begun from running; what runs is let go, and runs to its end."""
        self._board.close()
        self._board.abandon(terminated())

    def join(self) -> None:
        """Wait for every call that was made, and was not let go by :meth:`terminate`.

        Raises:
            ValueError: the pool has been neither closed nor terminated.
        """
        if not self._board.is_closed:
            raise ValueError("Pool is still running")
        self._board.wait()

    def __enter__(self) -> Self:
        self._refuse_after_close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def _refuse_after_close(self) -> None:
        if self._board.is_closed:
            raise ValueError("Pool not running")

    def _prepared(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if self._initializer is None or not callable(func):
            return func
        return functools.partial(run_initialised, self._id, self._initializer, self._initargs, func)


def _spread(iterable: Iterable[Iterable[Any]]) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    return ((tuple(item), {}) for item in iterable)


def register_joblib(name: str = "celery", *, make_default: bool = False) -> None:
    """Let joblib run on the workers: ``Parallel(n_jobs=2, backend="celery")``.

    Raises:
        ImportError: joblib is not installed; it comes with ``pip install celery-graft[joblib]``.
    """
    from graft.compat import joblib_backend

    joblib_backend.register(name, make_default=make_default)
