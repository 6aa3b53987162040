"""The mirror of ``celery_migration_poc``: the same names and shapes, and what they promise happens.

The tasks themselves live in ``tasks/legacy/migration_poc.py``, where workers find them; ``celery_app`` is the
deployment's app, so ``process_item.delay({"id": 1})`` reaches the workers of ``celery -A graft worker``.
"""

from __future__ import annotations

from typing import Any

from graft.compat.async_worker_optimization.data import LoadLevel, TaskItem, WorkerMetrics
from graft.compat.celery_migration_poc.optimizer import (
    AsyncWorkerOptimizationCompat,
    CeleryWorkerOptimizer,
    demo_celery_usage,
)
from graft.config.deployment import app
from graft.tasks.legacy.migration_poc import (
    batch_process,
    cleanup_old_results,
    collect_metrics,
    heavy_computation,
    process_item,
)


def __getattr__(name: str) -> Any:
    if name == "celery_app":
        return app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AsyncWorkerOptimizationCompat",
    "CeleryWorkerOptimizer",
    "LoadLevel",
    "TaskItem",
    "WorkerMetrics",
    "batch_process",
    "celery_app",
    "cleanup_old_results",
    "collect_metrics",
    "demo_celery_usage",
    "heavy_computation",
    "process_item",
]
