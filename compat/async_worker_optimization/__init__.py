"""The mirror of ``async_worker_optimization``: the same names and shapes, on the workers of this deployment.

What moves an old program here is its import line; what differs is said at each class. ``from … import *`` gives the
legacy module's classes and nothing else.
"""

from __future__ import annotations

from graft.compat.async_worker_optimization.batching import AsyncBatchProcessor
from graft.compat.async_worker_optimization.connections import ConnectionPool, ConnectionPoolOptimizer, MockConnection
from graft.compat.async_worker_optimization.data import LoadLevel, TaskItem, WorkerMetrics
from graft.compat.async_worker_optimization.memory import MemoryOptimizer, MemoryPool, _RepeatedString, _SparseList
from graft.compat.async_worker_optimization.optimizer import AsyncWorkerOptimizer
from graft.compat.async_worker_optimization.pipeline import Pipeline
from graft.compat.async_worker_optimization.profiling import PerformanceProfiler
from graft.compat.async_worker_optimization.resources import ResourcePool
from graft.compat.async_worker_optimization.schedule_graph import SkippedTaskError as SkippedTaskError
from graft.compat.async_worker_optimization.scheduler import AsyncTaskScheduler

__all__ = [
    "AsyncBatchProcessor",
    "AsyncTaskScheduler",
    "AsyncWorkerOptimizer",
    "ConnectionPool",
    "ConnectionPoolOptimizer",
    "LoadLevel",
    "MemoryOptimizer",
    "MemoryPool",
    "MockConnection",
    "PerformanceProfiler",
    "Pipeline",
    "ResourcePool",
    "TaskItem",
    "WorkerMetrics",
    "_RepeatedString",
    "_SparseList",
]
