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
from typing import Any, Final

from graft.compat import old_way
from graft.compat.guests.context import GuestContext
from graft.compat.guests.joblib_calls import JoblibCall, JoblibCalls
from graft.compat.guests.watched_calls import WatchedCalls
from graft.tasks.guests.mapped_files import MappedFile

COMPARED: Final = "_graft_is_compared"  # On an executor of loky's.
ARRAYS: Final = ("max_nbytes", "mmap_mode", "verbose", "prewarm")  # Options that say which arrays become files.

_lock = threading.Lock()
_current: list[tuple[Any, JoblibExecutor]] = []  # One for the process, as loky has.


class JoblibExecutor:
    """What joblib asks of an executor, over a pool whose processes are guests."""

    def __init__(self, pool: Any, calls: JoblibCalls) -> None:
        self._pool, self._calls = pool, calls
        self._max_workers = pool._max_workers
        self._temp_folder_manager = calls.folders
        self.is_over = False

    def submit(self, func: Any) -> Future[Any]:
        """The future of one of joblib's batches."""
        future: Future[Any] = self._pool.submit(JoblibCall(func, self._calls))
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
        self._temp_folder_manager._clean_temporary_resources(force=kill_workers, allow_non_empty=True)


def patch(module: ModuleType) -> None:
    """Have ``joblib.executor``, which is *module*, make executors of ours."""
    before = module.get_memmapping_executor

    def get_memmapping_executor(n_jobs: int, **options: Any) -> Any:
        if (watcher := old_way.watcher()) is not None:
            executor = before(n_jobs, **options)
            _compare(executor, watcher, n_jobs, options)
            return executor
        executor = _executor(n_jobs, options)
        if isinstance(executor, WatchedCalls):
            watched, executor = executor, before(n_jobs, **options)
            watched.watch(executor, "executor")
        return executor

    module.get_memmapping_executor = get_memmapping_executor  # type: ignore[attr-defined]


def _executor(n_jobs: int, options: dict[str, Any]) -> JoblibExecutor | WatchedCalls:
    """The executor of guests, or who counts the calls of loky's own."""
    key = (n_jobs, {name: options.get(name) for name in ("env", "initializer", "initargs", "temp_folder", *ARRAYS)})
    with _lock:
        if not (_current and _current[0][0] == key and _current[0][1].is_usable()):
            while _current:
                _current.pop()[1].terminate()
            calls = JoblibCalls(options.get("temp_folder"), {name: options[name] for name in ARRAYS if name in options})
            initializer = calls.initializer(options.get("initializer"), options.get("initargs") or ())
            pool = _moved(n_jobs, options.get("env") or {}, *initializer)
            if isinstance(pool, WatchedCalls):
                return pool
            _current.append((key, JoblibExecutor(pool, calls)))
        executor = _current[0][1]
        executor._temp_folder_manager.register_new_context(options.get("context_id"))
        return executor


def _compare(executor: Any, watcher: old_way.Watcher, n_jobs: int, options: dict[str, Any]) -> None:
    """Leave the calls to loky's own *executor*, with twins that have guests; once for each."""
    if getattr(executor, COMPARED, False):
        return
    setattr(executor, COMPARED, True)
    dumps = import_module("joblib.externals.loky.backend.reduction").dumps  # Arrays by value: the files may be gone.
    context = _context(options.get("env") or {}).belongs_to(executor)
    context.compare(watcher, n_jobs, options.get("initializer"), tuple(options.get("initargs") or ()), dumps)


def _context(environ: dict[str, str], **more: Any) -> GuestContext:
    return GuestContext(
        multiprocessing.get_context("spawn"), "multiprocessing", "executor", shown="joblib.Parallel", environ=environ,
        runs_main=False, **more,
    )  # fmt: skip


def _moved(
    n_jobs: int, environ: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> ProcessPoolExecutor | WatchedCalls:
    def files_of(work_id: int | None) -> tuple[MappedFile, ...]:
        work = pool._pending_work_items.get(work_id)
        return work.fn.files if work is not None else ()

    context: Any = _context(environ, files_of=files_of)
    pool: Any = ProcessPoolExecutor(n_jobs, context, initializer, initargs)
    if context.moves(pool):
        moved: ProcessPoolExecutor = pool
        return moved
    pool.shutdown()
    watched: WatchedCalls = context.watched
    return watched
