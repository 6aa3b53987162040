"""The ways in which a program gives work away, and where their calls take what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Kind:
    """One way of giving work away: its name, what moves it, and whether its workers are threads or coroutines."""

    name: str
    change: str
    shares_memory: bool = False


_EXECUTOR: Final = "from graft.compat.executor import CeleryExecutor as {}"
_POOL: Final = "from graft.compat.pool import Pool"
BATCH: Final = "await graft.submit({}, items), where it need not run in this process"
OLD: Final = "nothing: python -m graft.compat PROGRAM; or import it from {}"
PROCESSES: Final = Kind("ProcessPoolExecutor", _EXECUTOR.format("ProcessPoolExecutor"))
THREADS: Final = Kind("ThreadPoolExecutor", _EXECUTOR.format("ThreadPoolExecutor"), shares_memory=True)
GIVEN: Final = Kind("Executor", "make a graft.compat.executor.CeleryExecutor where it is made", shares_memory=True)
PROCESS_POOL: Final = Kind("multiprocessing.Pool", _POOL)
THREAD_POOL: Final = Kind("ThreadPool", f"{_POOL} as ThreadPool", shares_memory=True)
JOBLIB: Final = Kind("joblib.Parallel", 'graft.compat.pool.register_joblib(), then backend="celery"')
LOOP: Final = Kind("asyncio threads", "await graft.submit({}, items)", shares_memory=True)
POOLS: Final[dict[str, Kind]] = {
    "concurrent.futures.ProcessPoolExecutor": PROCESSES,
    "concurrent.futures.process.ProcessPoolExecutor": PROCESSES,
    "concurrent.futures.ThreadPoolExecutor": THREADS,
    "concurrent.futures.thread.ThreadPoolExecutor": THREADS,
    "concurrent.futures.Executor": GIVEN,
    "multiprocessing.Pool": PROCESS_POOL,
    "multiprocessing.pool.Pool": PROCESS_POOL,
    "multiprocess.Pool": PROCESS_POOL,
    "multiprocessing.pool.ThreadPool": THREAD_POOL,
    "multiprocessing.dummy.Pool": THREAD_POOL,
}
PARALLEL: Final = frozenset({"joblib.Parallel", "joblib.parallel.Parallel", "sklearn.utils.parallel.Parallel"})
DELAYED: Final = frozenset({"joblib.delayed", "joblib.parallel.delayed", "sklearn.utils.parallel.delayed"})
GATHERS: Final = frozenset({"asyncio.gather", "asyncio.wait", "asyncio.as_completed"})
SEMAPHORES: Final = frozenset({"asyncio.Semaphore", "asyncio.BoundedSemaphore"})
FACADES: Final = "graft.compat."


@dataclass(frozen=True)
class Shape:
    """Where a method takes its callables (*at*, or the keyword *name*), and of what kind its other arguments are."""

    at: int
    name: str
    rest: Literal["arguments", "items", "tuple"]


METHODS: Final[dict[str, Shape]] = {
    "submit": Shape(0, "fn", "arguments"),
    "apply": Shape(0, "func", "tuple"),
    "apply_async": Shape(0, "func", "tuple"),
    **{
        name: Shape(0, "func", "items")
        for name in ("map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered")
    },
}
OLD_METHODS: Final[dict[str, Shape]] = {
    "optimize_batch_processing": Shape(1, "task_func", "items"),
    "schedule_task": Shape(1, "task_func", "arguments"),
    "set_handler": Shape(0, "handler", "arguments"),
    "setup_pipeline": Shape(0, "stages", "arguments"),
    "spawn": Shape(0, "task", "arguments"),
    "spawn_cpu_work": Shape(0, "work", "arguments"),
    "spawn_parallel_batch": Shape(1, "process_fn", "items"),
    "spawn_chunked_parallel": Shape(2, "process_fn", "items"),
    "create_task": Shape(0, "func", "arguments"),
    "hybrid_optimization": Shape(9, "func", "items"),
    "optimize_with_ray": Shape(1, "func", "items"),
    "add_stage": Shape(1, "func", "arguments"),
    **METHODS,
}
