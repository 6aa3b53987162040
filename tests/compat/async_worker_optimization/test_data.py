"""A.1: LoadLevel, TaskItem, WorkerMetrics; and what the package gives away."""

from __future__ import annotations

import logging
import pickle
from datetime import datetime, timedelta

import graft.compat.async_worker_optimization as mirror
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, LoadLevel, TaskItem, WorkerMetrics

LEGACY_CLASSES = {
    "AsyncBatchProcessor", "AsyncTaskScheduler", "AsyncWorkerOptimizer", "ConnectionPool", "ConnectionPoolOptimizer",
    "LoadLevel", "MemoryOptimizer", "MemoryPool", "MockConnection", "PerformanceProfiler", "Pipeline", "ResourcePool",
    "TaskItem", "WorkerMetrics", "_RepeatedString", "_SparseList",
}  # fmt: skip


def test_a_star_import_gives_the_legacy_classes_and_nothing_else():
    names: dict[str, object] = {}
    exec("from graft.compat.async_worker_optimization import *", names)
    del names["__builtins__"]
    assert names.keys() == LEGACY_CLASSES
    assert all(isinstance(value, type) for value in names.values())


def test_the_logger_is_named_after_the_module():
    assert AsyncWorkerOptimizer().logger is logging.getLogger(mirror.__name__)


def test_the_load_levels_keep_their_order_and_values():
    assert [(level.name, level.value) for level in LoadLevel] == [
        ("LOW", "low"), ("MEDIUM", "medium"), ("HIGH", "high"), ("CRITICAL", "critical"),
    ]  # fmt: skip


def test_a_task_item_has_defaults_and_takes_its_fields_by_position():
    before = datetime.now()
    item = TaskItem("a", [1])
    assert (item.id, item.data, item.priority) == ("a", [1], 0)
    assert before <= item.created_at <= datetime.now()
    assert item.created_at.tzinfo is None
    made = datetime(2020, 1, 1)
    assert TaskItem("a", None, 3, made) == TaskItem(id="a", data=None, priority=3, created_at=made)


def test_sorting_task_items_puts_the_highest_priority_first():
    items = [TaskItem(str(priority), None, priority) for priority in (0, 5, -2, 9, 5)]
    assert [item.priority for item in sorted(items)] == [9, 5, 5, 0, -2]
    assert TaskItem("a", None, 2) < TaskItem("b", None, 1)
    assert not TaskItem("a", None, 1) < TaskItem("b", None, 1)


def test_task_items_are_equal_only_in_all_four_fields():
    made = datetime(2020, 1, 1)
    assert TaskItem("a", 1, 0, made) == TaskItem("a", 1, 0, made)
    assert TaskItem("a", 1, 0, made) != TaskItem("a", 1, 0, made + timedelta(microseconds=1))
    assert TaskItem("a", 1, 0, made) != TaskItem("a", 2, 0, made)


def test_worker_metrics_average_over_what_was_processed():
    fresh = WorkerMetrics()
    assert (fresh.tasks_processed, fresh.total_processing_time, fresh.errors_count) == (0, 0.0, 0)
    assert fresh.last_task_time is None
    assert fresh.average_processing_time == 0.0
    assert WorkerMetrics(4, 2.0, 1).average_processing_time == 0.5


def test_the_small_types_can_travel():
    for value in (LoadLevel.HIGH, TaskItem("a", (1, 2), 3), WorkerMetrics(1, 2.0)):
        assert pickle.loads(pickle.dumps(value)) == value
