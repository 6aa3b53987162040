"""The mirror of ``celery_integration_framework``: functions as tasks of an app of one's own, on real workers.

The workers are those of ``celery -A graft worker``; they run every call through ``tasks/running/call_task.py`` and need
not know the framework's tasks.
"""

from __future__ import annotations

from graft.compat.celery_integration_framework.batches import CeleryBatchProcessor
from graft.compat.celery_integration_framework.data import TaskResult, TaskStatus, WorkerMetrics, WorkerStatus
from graft.compat.celery_integration_framework.framework import CeleryIntegrationFramework
from graft.compat.celery_integration_framework.samples import create_celery_app, create_sample_tasks

__all__ = [
    "CeleryBatchProcessor",
    "CeleryIntegrationFramework",
    "TaskResult",
    "TaskStatus",
    "WorkerMetrics",
    "WorkerStatus",
    "create_celery_app",
    "create_sample_tasks",
]
