"""``concurrent.futures.Executor`` on Celery workers: ``CeleryExecutor``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, ParamSpec, TypeVar

from graft.compat.bridge import Place
from graft.compat.calls import Switchboard
from graft.compat.futures import BrokenClusterError, MapCall, Stream
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, ResultTimeout
from graft.tasks.policy import RetryPolicy

__all__ = ["BrokenClusterError", "CeleryExecutor"]

P = ParamSpec("P")
T = TypeVar("T")


class CeleryExecutor(Executor):
    """Runs calls on the workers, behind the interface of the standard executors.

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
            stream = Stream(lambda row: self._board.follow(route, row, {}), rows, window=buffersize)
            return _until(deadline, stream.next, stream.close)
        if len(iterables) == 1:
            batch = self._board.map(route, list(iterables[0]), unpack=False)
        else:
            batch = self._board.map(route, [(row, {}) for row in rows], unpack=True)
        return _until(deadline, _taker(batch), batch.cancel)

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


def _taker(batch: MapCall) -> Callable[[float | None], Any]:
    positions = iter(range(batch.total))

    def take(timeout: float | None) -> Any:
        return batch.take(next(positions), timeout).unwrap()

    return take


def _until(deadline: float | None, take: Callable[[float | None], Any], leave: Callable[[], object]) -> Iterator[Any]:
    """Values until there are no more; whoever stops reading before keeps what has not begun from running."""
    try:
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            yield take(left)  # Without a name: a value that the reader has dropped must not be kept here.
    except StopIteration:
        return
    except CancelledBatchError as error:
        raise CancelledError(str(error)) from None
    except ResultTimeout:
        raise TimeoutError("a result had not arrived when the timeout of map() ended") from None
    except BrokerUnavailable as error:
        if isinstance(error, BrokenClusterError):
            raise
        raise BrokenClusterError(str(error)) from error
    finally:
        leave()
