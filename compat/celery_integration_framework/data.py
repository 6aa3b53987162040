"""The framework's small types. Source: ``celery_integration_framework``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any


class TaskStatus(Enum):
    PENDING = "PENDING"
    STARTED = "STARTED"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    RETRY = "RETRY"
    REVOKED = "REVOKED"


class WorkerStatus(Enum):
    IDLE = "idle"
    BUSY = "busy"
    OFFLINE = "offline"
    ERROR = "error"


@dataclass
class TaskResult:
    """A task's status and result.

    ``result`` is its value, or the exception it failed with; ``execution_time`` is seconds of its last run; times are
    aware, in UTC.
    """

    task_id: str
    status: TaskStatus
    result: Any = None
    traceback: str | None = None
    execution_time: float = 0.0
    worker_name: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None


@dataclass
class WorkerMetrics:
    """One worker's stats of a framework, over all its clients.

    ``total_execution_time`` is seconds, ``memory_usage`` resident bytes of the worker and its pool processes,
    ``cpu_usage`` the processor's share (0 to 1) of the execution time, ``last_heartbeat`` None when it is offline.
    """

    worker_name: str
    active_tasks: int = 0
    completed_tasks: int = 0
    failed_tasks: int = 0
    total_execution_time: float = 0.0
    memory_usage: float = 0.0
    cpu_usage: float = 0.0
    last_heartbeat: datetime | None = None
