"""joblib's default backend on guests: its executor of loky is replaced, its backend stays.

loky's processes are fresh ones that do not run the main module, and functions travel by joblib's own cloudpickle; so it
is here. A pool that stays at home is loky's own.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from types import ModuleType
from typing import Any

from graft.compat.guests.context import GuestContext
from graft.compat.guests.watched_calls import WatchedCalls

_lock = threading.Lock()
_current: list[tuple[Any, JoblibExecutor]] = []  # One for the process, as loky has.


class JoblibExecutor:
    """What joblib asks of an executor, over a pool whose processes are guests."""

    def __init__(self, pool: Any, temp_folder: str | None) -> None:
        self._pool = pool
        self._max_workers = pool._max_workers
        self._wrap = import_module("joblib.externals.loky.cloudpickle_wrapper").wrap_non_picklable_objects
        manager: Any = import_module("joblib._memmapping_reducer").TemporaryResourcesManager
        self._temp_folder_manager = manager(temp_folder)
        self.is_over = False

    def submit(self, func: Any) -> Future[Any]:
        """The future of one of joblib's batches."""
        future: Future[Any] = self._pool.submit(self._wrap(func, keep_wrapper=False))
        return future

    def is_usable(self) -> bool:
        """Whether it still takes calls."""
        return not (self.is_over or self._pool._broken)

    def terminate(self, kill_workers: bool = False) -> None:
        """End it; *kill_workers* ends the calls that run as well."""
        self.is_over = True
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=not kill_workers, cancel_futures=True)
        for process in processes if kill_workers else ():
            process.terminate()
        self._temp_folder_manager._clean_temporary_resources(force=kill_workers)


def patch(module: ModuleType) -> None:
    """Have ``joblib.executor``, which is *module*, make executors of ours."""
    before = module.get_memmapping_executor

    def get_memmapping_executor(n_jobs: int, **options: Any) -> Any:
        executor = _executor(n_jobs, options)
        if isinstance(executor, WatchedCalls):
            watched, executor = executor, before(n_jobs, **options)
            watched.watch(executor, "executor")
        return executor

    module.get_memmapping_executor = get_memmapping_executor  # type: ignore[attr-defined]


def _executor(n_jobs: int, options: dict[str, Any]) -> JoblibExecutor | WatchedCalls:
    """The executor of guests, or who counts the calls of loky's own."""
    key = (n_jobs, {name: options.get(name) for name in ("env", "initializer", "initargs")})
    with _lock:
        if _current and _current[0][0] == key and _current[0][1].is_usable():
            return _current[0][1]
        while _current:
            _current.pop()[1].terminate()
        pool = _moved(n_jobs, options.get("env") or {}, options.get("initializer"), options.get("initargs") or ())
        if isinstance(pool, WatchedCalls):
            return pool
        _current.append((key, JoblibExecutor(pool, options.get("temp_folder"))))
        return _current[0][1]


def _moved(
    n_jobs: int, environ: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> ProcessPoolExecutor | WatchedCalls:
    context: Any = GuestContext(
        multiprocessing.get_context("spawn"), "multiprocessing", "executor", shown="joblib.Parallel", environ=environ,
        runs_main=False,
    )  # fmt: skip
    pool = ProcessPoolExecutor(n_jobs, context, initializer, initargs)
    if context.moves(pool):
        return pool
    pool.shutdown()
    watched: WatchedCalls = context.watched
    return watched
