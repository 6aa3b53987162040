"""joblib on Celery workers: ``Parallel(n_jobs=2, backend="celery")``, after ``graft.compat.pool.register_joblib()``.

One of joblib's own batches is one call here, and joblib goes on learning how large they should be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, Protocol

import redis
from joblib import parallel_config, register_parallel_backend  # type: ignore[import-untyped]
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase  # type: ignore[import-untyped]

from graft.compat.bridge import is_local, place_function
from graft.compat.dispatcher import Switchboard
from graft.tasks.callables.references import FunctionRef, resolve
from graft.tasks.worker_runtime import in_worker

CALL: Final = "joblib.Parallel"
# What joblib tells every backend, for memory maps and processes that there are none of here.
JOBLIBS_OWN: Final = frozenset({"prefer", "require", "max_nbytes", "temp_folder", "mmap_mode", "verbose", "context"})
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class JoblibBatch(Protocol):
    """joblib's ``BatchedCalls``: what ``delayed`` was given, and a call that makes all of them."""

    items: Sequence[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]

    def __call__(self) -> list[Any]: ...


class CeleryBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """joblib's backend: ``n_jobs`` bounds the batches that run at once, and -1 is every slot of the live workers.

    Functions and arguments travel by rule R2, without joblib's memory mapping: a batch above ``GRAFT_ITEM_LIMIT`` is
    refused. A batch of which something cannot travel runs on a thread of the caller's. ``n_jobs=1`` is sequential, in
    the caller, and so is a Parallel call inside a task. ``parallel_config`` takes *queue*, *priority*, *retry*,
    *timeout* and *place* as the executor does; so does ``Parallel``, whose own *timeout* is another.
    """

    supports_retrieve_callback = True
    parallel: Any = None
    _board: Switchboard | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or in_worker():
            return 1
        return n_jobs if n_jobs > 0 else max(_slots() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        self.parallel = parallel
        n_jobs = self.effective_n_jobs(n_jobs)
        ours = {name: value for name, value in options.items() if name not in JOBLIBS_OWN}
        self._board = Switchboard(max_workers=n_jobs, **{**self.backend_kwargs, **ours})
        return n_jobs

    def submit(self, func: JoblibBatch, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """The future of one of joblib's batches."""
        assert self._board is not None
        future = _submitted(self._board, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        if self._board is not None:
            self._board.cancel()

    def terminate(self) -> None:
        if self._board is not None:
            self._board.close()
        self.reset_batch_stats()


def _submitted(board: Switchboard, batch: JoblibBatch) -> Future[Any]:
    try:
        route = board.route(run_calls, call=CALL, shown=batch.items[0][0])
        placements = [place_function(func, board.place) for func, _, _ in batch.items]
    except Exception as error:  # joblib calls from a callback, where a raised error would be lost.
        return board.refused(error)
    staying = next((placement for placement in placements if placement.function is None), None)
    if staying is not None:
        return board.follow(replace(route, func=batch, placement=staying, order=None), (), {})
    refs = [placement.function for placement in placements]
    arguments = [(args, kwargs) for _, args, kwargs in batch.items]
    return board.follow(route, (refs, arguments), {})


def run_calls(functions: Sequence[FunctionRef], arguments: Sequence[Arguments]) -> list[Any]:
    """Make the calls of one batch, on a worker; what they do with joblib themselves happens in place."""
    with parallel_config(backend="sequential"):
        return [resolve(ref)(*args, **kwargs) for ref, (args, kwargs) in zip(functions, arguments, strict=True)]


def _slots() -> int:
    if is_local():
        return os.cpu_count() or 1
    from graft.tasks.monitoring.worker_registry import slots
    from graft.tasks.results.subscriber import unavailable

    try:
        return slots("batch") or os.cpu_count() or 1  # Without a worker calls wait for one, rather than stay here.
    except (redis.RedisError, OSError) as error:
        raise unavailable(error) from error


def register(name: str, *, make_default: bool = False) -> None:
    """Have joblib know the backend as *name*."""
    register_parallel_backend(name, CeleryBackend, make_default=make_default)
