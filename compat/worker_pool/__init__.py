"""Worker pools: the Go lesson's and the Rust task's, on one class. Contract: sections B and C of the old APIs."""

from graft.compat.worker_pool.collector import ResultCollector
from graft.compat.worker_pool.context import Context
from graft.compat.worker_pool.data import PoolMetrics, Result, Task
from graft.compat.worker_pool.dynamic import DynamicWorkerPool, PoolLoad, decide
from graft.compat.worker_pool.errors import (
    ContextCancelledError,
    ContextError,
    DeadlineExceededError,
    ForceShutdownTimeoutError,
    JoinError,
    ParallelError,
    PoolClosedError,
    QueueFullError,
    ShutdownTimeoutError,
    SubmitTimeoutError,
    TaskCancelled,
    TaskFailed,
    WorkerPoolError,
)
from graft.compat.worker_pool.pool import WorkerPool
from graft.compat.worker_pool.priority import PriorityTaskQueue, PriorityWorkerPool
from graft.compat.worker_pool.processor import TaskProcessor
from graft.compat.worker_pool.stream import ResultStream
from graft.tasks.pools.state import PoolMismatchError

__all__ = [
    "Context",
    "ContextCancelledError",
    "ContextError",
    "DeadlineExceededError",
    "DynamicWorkerPool",
    "ForceShutdownTimeoutError",
    "JoinError",
    "ParallelError",
    "PoolClosedError",
    "PoolLoad",
    "PoolMetrics",
    "PoolMismatchError",
    "PriorityTaskQueue",
    "PriorityWorkerPool",
    "QueueFullError",
    "Result",
    "ResultCollector",
    "ResultStream",
    "ShutdownTimeoutError",
    "SubmitTimeoutError",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskProcessor",
    "WorkerPool",
    "WorkerPoolError",
    "decide",
]
