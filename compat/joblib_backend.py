"""joblib on Celery workers: ``Parallel(n_jobs=2, backend="celery")``, after ``graft.compat.pool.register_joblib()``.

One of joblib's own batches is one call here, and joblib goes on learning how large they should be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final, Protocol

from joblib import parallel_config, register_parallel_backend  # type: ignore[import-untyped]
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase  # type: ignore[import-untyped]

from graft.compat import worker_admin
from graft.compat.dispatcher import CallDispatcher
from graft.compat.placement import is_local, place_calls
from graft.config.queues import table
from graft.tasks.callables.references import FunctionRef, resolve
from graft.tasks.shared.turns import refuse_limits
from graft.tasks.worker_runtime import in_worker

CALL: Final = "joblib.Parallel"
# Options of joblib for memory maps and processes, which this backend does not have.
JOBLIBS_OWN: Final = frozenset({"prefer", "require", "max_nbytes", "temp_folder", "mmap_mode", "verbose", "context"})
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class JoblibBatch(Protocol):
    """joblib's ``BatchedCalls``: several calls, and a method that makes them all."""

    items: Sequence[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]

    def __call__(self) -> list[Any]: ...


class CeleryBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """joblib's backend: at most ``n_jobs`` batches run at once; -1 is every slot of the live workers.

    Functions and arguments travel by rule R2, without joblib's memory mapping: a batch above ``GRAFT_ITEM_LIMIT`` is
    refused. A batch that cannot travel as a whole runs on a thread of this process. ``n_jobs=1``, and a Parallel call
    inside a task, run sequentially in this process. What is given up, after ``timeout`` or an error, is ended.
    ``parallel_config`` takes *queue*, *priority*, *retry*, *timeout* and *place* as the executor does; so does
    ``Parallel``, except that its *timeout* is joblib's own.
    """

    supports_retrieve_callback = True
    parallel: Any = None
    _dispatcher: CallDispatcher | None = None

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
        self._dispatcher = CallDispatcher(max_workers=n_jobs, **{**self.backend_kwargs, **ours})
        return n_jobs

    def submit(self, func: JoblibBatch, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """The future of one of joblib's batches."""
        assert self._dispatcher is not None
        future = _submitted(self._dispatcher, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        if self._dispatcher is not None:
            self._dispatcher.end_running()

    def terminate(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.close()
        self.reset_batch_stats()


def _submitted(dispatcher: CallDispatcher, batch: JoblibBatch) -> Future[Any]:
    try:
        route = dispatcher.route(run_calls, call=CALL, shown=batch.items[0][0])
        for func, _, _ in batch.items:
            refuse_limits(func, "joblib's Parallel")
        placements = [place_calls(func, dispatcher.place) for func, _, _ in batch.items]
    except Exception as error:  # joblib calls from a callback, where a raised error would be lost.
        return dispatcher.refused(error)
    staying = next((placement for placement in placements if placement.function is None), None)
    if staying is not None:
        return dispatcher.follow(replace(route.moved_here(staying.reason), func=batch), (), {})
    refs = [placement.function for placement in placements]
    arguments = [(args, kwargs) for _, args, kwargs in batch.items]
    return dispatcher.follow(route, (refs, arguments), {})


def run_calls(functions: Sequence[FunctionRef], arguments: Sequence[Arguments]) -> list[Any]:
    """Make the calls of one batch on a worker; joblib calls inside them run in place."""
    with parallel_config(backend="sequential"):
        return [resolve(ref)(*args, **kwargs) for ref, (args, kwargs) in zip(functions, arguments, strict=True)]


def _slots() -> int:
    """Pool slots of the live workers; without a worker, calls wait for one."""
    return (0 if is_local() else worker_admin.slots(table().batch)) or os.cpu_count() or 1


def register(name: str, *, make_default: bool = False) -> None:
    """Register the backend with joblib as *name*."""
    register_parallel_backend(name, CeleryBackend, make_default=make_default)
