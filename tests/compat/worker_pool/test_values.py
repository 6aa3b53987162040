"""B.1, B.3, B.4, B.5, B.6: what needs no worker."""

from __future__ import annotations

import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat import worker_pool as wp
from graft.compat.worker_pool import PriorityTaskQueue, Result, ResultCollector, Task, TaskProcessor, WorkerPool, decide
from graft.compat.worker_pool.parallel import shrinking
from graft.tasks.pools.state import Limits
from tests.stack import wait_until


def test_data_has_the_lessons_fields_and_defaults():
    task = Task(7)
    assert (task.id, task.data, task.priority, task.timeout) == (7, None, 0, 0.0)
    result = Result(7, output=1, error=None, duration=0.5, worker_id=2)
    assert (result.task_id, result.output, result.error, result.duration, result.worker_id) == (7, 1, None, 0.5, 2)
    metrics = wp.PoolMetrics()
    assert (metrics.tasks_processed, metrics.total_duration, metrics.error_count) == (0, 0.0, 0)
    assert (metrics.avg_latency, metrics.throughput) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "text", "also"),
    [
        (wp.QueueFullError, "task queue is full", queue.Full),
        (wp.SubmitTimeoutError, "submit timeout", TimeoutError),
        (wp.ShutdownTimeoutError, "shutdown timeout", TimeoutError),
        (wp.ForceShutdownTimeoutError, "force shutdown timeout", wp.ShutdownTimeoutError),
        (wp.PoolClosedError, "worker pool is closed", wp.WorkerPoolError),
    ],
)
def test_an_error_has_its_exact_text_and_is_what_callers_catch(kind, text, also):
    error = kind()
    assert str(error) == text
    assert isinstance(error, also)
    assert isinstance(error, wp.WorkerPoolError)


def test_the_parallel_errors_are_a_family_with_texts():
    assert str(wp.ParallelError.TaskFailed("no")) == "Task processing failed: no"
    assert str(wp.ParallelError.TaskCancelled()) == "Task was cancelled"
    assert str(wp.ParallelError.JoinError("gone")) == "Join error: gone"
    for kind in (wp.TaskFailed, wp.TaskCancelled, wp.JoinError):
        assert issubclass(kind, wp.ParallelError)


# ---- TaskProcessor ---------------------------------------------------------------------------------------------------


def test_a_processor_measures_and_answers():
    result = TaskProcessor(lambda task: task.data + 1).process(Task(3, 4))
    assert (result.task_id, result.output, result.error, result.worker_id) == (3, 5, None, -1)
    assert result.duration >= 0


def test_a_processors_error_is_in_the_result():
    result = TaskProcessor(lambda task: 1 // 0).process(Task(3))
    assert isinstance(result.error, ZeroDivisionError)
    assert result.output is None


def test_a_result_that_the_function_returns_is_taken_over_and_filled_in():
    result = TaskProcessor(lambda task: Result(output="mine")).process(Task(3))
    assert (result.task_id, result.output) == (3, "mine")
    assert result.duration is not None
    kept = TaskProcessor(lambda task: Result(9, duration=1.5)).process(Task(3))
    assert (kept.task_id, kept.duration) == (9, 1.5)


def test_a_processor_needs_a_callable():
    with pytest.raises(TypeError, match="not callable"):
        TaskProcessor(5)


# ---- PriorityTaskQueue -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5)))
def test_the_highest_priority_comes_first_and_equals_in_their_order(priorities):
    waiting = PriorityTaskQueue()
    for number, priority in enumerate(priorities):
        waiting.push(Task(number, priority=priority))
    assert len(waiting) == waiting.len() == len(priorities)
    popped = [waiting.pop().id for _ in priorities]
    assert popped == sorted(range(len(priorities)), key=lambda number: -priorities[number])
    with pytest.raises(IndexError):
        waiting.pop()


def test_the_queue_is_safe_for_threads():
    waiting = PriorityTaskQueue()
    threads = [
        threading.Thread(target=lambda part=part: [waiting.push(Task(part * 1000 + n, priority=n)) for n in range(500)])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [waiting.pop() for _ in range(2000)]
    assert [task.priority for task in found] == sorted((task.priority for task in found), reverse=True)
    assert len({task.id for task in found}) == 2000


# ---- ResultCollector -------------------------------------------------------------------------------------------------


def test_a_collector_keeps_the_order_and_gives_copies():
    collector = ResultCollector(2)
    collector.start()
    collector.start()
    for number in range(10):
        collector.submit(Result(number))
    copy = collector.get_results()
    copy.clear()
    assert [result.task_id for result in collector.get_results()] == list(range(10))
    closed = collector.close()
    assert collector.close() == closed
    with pytest.raises(wp.PoolClosedError):
        collector.submit(Result(11))


def test_a_collector_that_is_not_started_holds_its_buffer_and_no_more():
    collector = ResultCollector(1)
    collector.submit(Result(0))
    waiting = threading.Thread(target=collector.submit, args=(Result(1),))
    waiting.start()
    assert collector.get_results() == []
    collector.start()
    waiting.join(30)
    assert [result.task_id for result in collector.close()] == [0, 1]


def test_closing_takes_in_what_is_left_and_releases_who_waits():
    collector = ResultCollector(1)
    collector.submit(Result(0))
    errors = []

    def submit():
        try:
            collector.submit(Result(1))
        except wp.PoolClosedError as error:
            errors.append(error)

    waiting = threading.Thread(target=submit)
    waiting.start()
    wait_until(waiting.is_alive)
    collector.close()
    waiting.join(30)
    assert collector.get_results()[0].task_id == 0
    assert len(errors) + len(collector.get_results()) == 2


# ---- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "length", "change"),
    [
        (2, 4, 0), (2, 5, 1), (4, 9, 1), (4, 2, 0), (4, 1, -1), (3, 0, -1), (3, 1, 0),
        (1, 0, 0), (2, 0, -1), (10, 21, 0),
    ],
)  # fmt: skip
def test_the_decision_is_the_contracts_table(current, length, change):
    assert decide(length, current, 1, 10) == change


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_a_decision_never_leaves_the_bounds(length, low, more, offset):
    high = low + more
    current = low + offset % (more + 1)
    assert low <= current + decide(length, current, low, high) <= high


@given(st.integers(0, 20_000), st.integers(1, 64))
def test_chunks_cover_everything_and_never_grow(count, workers):
    sizes = shrinking(count, workers)
    assert sum(sizes) == count
    assert all(size >= 1 for size in sizes)
    assert sizes == sorted(sizes, reverse=True)


# ---- construction ----------------------------------------------------------------------------------------------------


def test_both_dialects_names_make_the_same_pool():
    for pool in (
        WorkerPool(4, 100),
        WorkerPool(num_workers=4, queue_size=100),
        WorkerPool(worker_count=4, queue_capacity=100),
    ):
        assert (pool.num_workers, pool.queue_size, pool.worker_count(), pool.state) == (4, 100, 4, "new")
        with pytest.raises(AttributeError):
            pool.num_workers = 5


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"num_workers": 1, "worker_count": 1, "queue_size": 1}, TypeError),
        ({"num_workers": 1, "queue_size": 1, "queue_capacity": 1}, TypeError),
        ({"queue_size": 1}, TypeError),
        ({"num_workers": 1.5, "queue_size": 1}, TypeError),
        ({"num_workers": 0, "queue_size": 1}, ValueError),
        ({"num_workers": 1, "queue_size": -1}, ValueError),
        ({"num_workers": 1, "queue_size": 1, "name": ""}, ValueError),
        ({"num_workers": 1, "queue_size": 1, "place": "moon"}, ValueError),
        ({"num_workers": 1, "queue_size": 1, "processor": 5}, TypeError),
    ],
)
def test_a_pool_that_cannot_work_is_refused(arguments, kind):
    with pytest.raises(kind):
        WorkerPool(**arguments)


def test_new_refuses_a_queue_without_room():
    with pytest.raises(ValueError, match="queue_capacity=0"):
        WorkerPool.new(1, 0)


def test_a_dynamic_pools_bounds_are_checked():
    for low, high in ((0, 1), (3, 2)):
        with pytest.raises(ValueError, match="min_workers"):
            wp.DynamicWorkerPool(low, high, 10)


def test_limits_name_what_differs():
    assert str(Limits("WorkerPool", 2, 3)) == "Limits(kind='WorkerPool', workers=2, capacity=3)"
