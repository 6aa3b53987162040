"""``multiprocessing.Pool`` on Celery workers: ``Pool``; ``register_joblib`` for joblib."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, Unpack

from graft.compat.dispatcher import CallDispatcher
from graft.compat.pool_initializer import run_initialised
from graft.compat.pool_iterators import WINDOW, IMapIterator, InputReader
from graft.compat.pool_results import AsyncResult, Callback, terminated
from graft.compat.routes import ExecutorOptions, Route
from graft.config.validation import at_least_one
from graft.tasks.ids import new_id

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError", "register_joblib"]

TimeoutError = multiprocessing.TimeoutError


class Pool:
    """Runs calls on the workers, behind the interface of ``multiprocessing.Pool``, which is its source.

    Calls that must stay in this process by rule R2 (closures over lists, bound methods, arguments that cannot be
    pickled, locks among them) run on threads of this pool.

    Differences from multiprocessing: ``terminate`` cannot stop a call that runs on a worker; results that will not
    come any more raise CancelledBatchError instead of never being ready; ``imap`` reads its input a bounded way ahead
    of its reader, and no further once the reader has left; a call that raises StopIteration does not end an ``imap``
    silently.

    Args:
        processes: single calls that may run at once, and likewise for each map. Default: unlimited.
        initializer: called as ``initializer(*initargs)`` in each worker process before this pool's first call there.
            The processes are shared and outlive the pool, and so do the initializer's effects. If the function, the
            initializer or an argument cannot travel, both run in this process. An error of the initializer is the
            call's error.
        initargs: see *initializer*.
        maxtasksperchild: accepted and ignored; the workers' own setting is ``--max-tasks-per-child``.
        context: accepted and ignored; no process is started here.
        options: ``queue``, ``priority``, ``share``, ``retry``, ``timeout`` and ``place``, see :class:`ExecutorOptions`.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        **options: Unpack[ExecutorOptions],
    ) -> None:
        if processes is not None:
            at_least_one("processes", processes)
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._dispatcher = CallDispatcher(processes, **options)
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._id = new_id()

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
        """Start ``func(*args, **kwds)``. Callbacks run on the thread that receives results, and must not wait."""
        return self._apply("Pool.apply_async", func, args, kwds, callback, error_callback)

    def _apply(
        self,
        name: str,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        *callbacks: Callback | None,
    ) -> AsyncResult:
        self._refuse_after_close()
        future = self._dispatcher.call(self._prepared(func), tuple(args), dict(kwds or {}), call=name, shown=func)
        return AsyncResult(future, future.result, *callbacks)

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """The values of *func* for every item, in order, or the error that came first once all have ended.

        *chunksize* is the number of items in one envelope. Default: learnt from the pace of *func*.
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
        name, items = "Pool.starmap_async", _spread(iterable)
        return self._map(name, func, items, chunksize, callback, error_callback, unpack=True)

    def _map(
        self,
        name: str,
        func: Callable[..., Any],
        items: Iterable[Any],
        chunksize: int | None,
        *callbacks: Callback | None,
        unpack: bool = False,
    ) -> AsyncResult:
        route = self._route(name, func, chunksize)
        batch = self._dispatcher.map(route, list(items), unpack=unpack)
        return AsyncResult(batch.ended, batch.collect, *callbacks, bar=batch.bar)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, buffersize: int | None = None
    ) -> IMapIterator:
        """Return an iterator over the values, in order. A thread reads the input a bounded way ahead of its reader.

        Args:
            func: called with each item.
            iterable: may be slow or endless.
            chunksize: items in one envelope. Default: learnt from the pace of *func*.
            buffersize: items that are read ahead of the reader, and so calls that are made and not yet handed out.
                Default: 1,000, or four times *chunksize*. (Of Python's own pool since 3.15.)
        """
        return self._imap("Pool.imap", func, iterable, chunksize, buffersize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, buffersize: int | None = None
    ) -> IMapIterator:
        """Like :meth:`imap`, in the order in which values arrive."""
        return self._imap("Pool.imap_unordered", func, iterable, chunksize, buffersize, ordered=False)

    def _imap(
        self,
        name: str,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        *,
        ordered: bool,
    ) -> IMapIterator:
        route = self._route(name, func, None if chunksize == 1 else chunksize)
        window = max(WINDOW, 4 * chunksize) if buffersize is None else at_least_one("buffersize", buffersize)
        reader = InputReader(ordered=ordered, window=window)
        reader.start(lambda item: self._dispatcher.follow(route, (item,), {}), iter(iterable))
        self._dispatcher.add_reader(reader)
        return IMapIterator(reader)

    def _route(self, name: str, func: Callable[..., Any], chunksize: int | None) -> Route:
        self._refuse_after_close()
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize={chunksize} must be at least 1")
        return self._dispatcher.route(self._prepared(func), call=name, batch_size=chunksize, is_map=True, shown=func)

    def close(self) -> None:
        """Refuse new calls; accepted calls run."""
        self._dispatcher.close()

    def terminate(self) -> None:
        """Refuse new calls and cancel those that have not begun; running calls end unobserved."""
        self._dispatcher.close()
        self._dispatcher.abandon(terminated())

    def join(self) -> None:
        """Wait for every accepted call that :meth:`terminate` has not abandoned.

        Raises:
            ValueError: the pool has been neither closed nor terminated.
        """
        if not self._dispatcher.is_closed:
            raise ValueError("Pool is still running")
        self._dispatcher.wait()

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
        if self._dispatcher.is_closed:
            raise ValueError("Pool not running")

    def _prepared(self, func: Callable[..., Any]) -> Callable[..., Any]:
        if self._initializer is None or not callable(func):
            return func
        return functools.partial(run_initialised, self._id, self._initializer, self._initargs, func)


def _spread(iterable: Iterable[Iterable[Any]]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    return ((tuple(item), {}) for item in iterable)


def register_joblib(name: str = "celery", *, make_default: bool = False) -> None:
    """Let joblib run on the workers: ``Parallel(n_jobs=2, backend="celery")``.

    Raises:
        ImportError: joblib is not installed; it comes with ``pip install celery-graft[joblib]``.
    """
    from graft.compat import joblib_backend

    joblib_backend.register(name, make_default=make_default)
