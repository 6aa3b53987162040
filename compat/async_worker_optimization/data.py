"""The legacy module's small types."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any


class LoadLevel(Enum):
    """How busy a pool is. Source: ``async_worker_optimization.LoadLevel``."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass
class TaskItem:
    """A piece of work; sorting puts the highest ``priority`` first, equality compares all four fields.

    ``created_at`` is naive local time. Source: ``async_worker_optimization.TaskItem``.
    """

    id: str
    data: Any
    priority: float = 0
    created_at: datetime = field(default_factory=datetime.now)

    def __lt__(self, other: TaskItem) -> bool:
        return self.priority > other.priority


@dataclass
class WorkerMetrics:
    """Totals of one function; times are seconds, ``last_task_time`` is naive local time.

    Source: ``async_worker_optimization.WorkerMetrics``.
    """

    tasks_processed: int = 0
    total_processing_time: float = 0.0
    errors_count: int = 0
    last_task_time: datetime | None = None

    @property
    def average_processing_time(self) -> float:
        """Seconds per task, 0.0 before the first."""
        if self.tasks_processed == 0:
            return 0.0
        return self.total_processing_time / self.tasks_processed
