"""B.4 and B.6 on real workers."""

from __future__ import annotations

import functools
import random

import pytest

from graft.compat.async_worker_optimization import LoadLevel
from graft.compat.worker_pool import DynamicWorkerPool, PoolLoad, PriorityWorkerPool, QueueFullError, Task
from graft.tasks.monitoring.worker_registry import slots, workers
from tests.compat.worker_pool import work
from tests.stack import wait_until


def test_the_highest_waiting_task_is_next_whatever_came_first(stack, tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    with PriorityWorkerPool(1, 100) as pool:
        pool.submit_task(Task(-1, functools.partial(work.hold, str(gate))))
        wait_until(lambda: work.begun(str(gate)))
        priorities = [random.randint(-3, 12) for _ in range(60)]
        for number, priority in enumerate(priorities):
            note = functools.partial(work.note_task, Task(number, (str(log), number)))
            pool.submit_task(Task(number, note, priority=priority))
        gate.touch()
    ran = [int(line) for line in log.read_text().split()]
    assert ran == sorted(range(60), key=lambda number: -priorities[number])
    assert [result.task_id for result in pool.get_result()] == [-1, *ran]


def test_a_latecomer_overtakes_what_waits_and_interrupts_nothing(stack, tmp_path):
    gates = [tmp_path / name for name in ("first", "second")]
    log = tmp_path / "log"

    def note(number):
        return functools.partial(work.note_task, Task(number, (str(log), number)))

    with PriorityWorkerPool(1, 10) as pool:
        pool.submit_task(Task(0, functools.partial(work.hold, str(gates[0]))))
        wait_until(lambda: work.begun(str(gates[0])))
        pool.submit_task(Task(1, functools.partial(work.hold, str(gates[1])), priority=5))
        pool.submit_task(Task(2, note(2), priority=1))
        gates[0].touch()
        wait_until(lambda: work.begun(str(gates[1])))
        pool.submit_task(Task(3, note(3), priority=9))
        gates[1].touch()
    assert log.read_text().split() == ["3", "2"]


def test_tasks_that_stay_here_keep_their_place_in_the_order(stack, tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    lines = []

    def here(number):
        lines.append(number)
        work.note_task(Task(number, (str(log), number)))

    with PriorityWorkerPool(1, 50) as pool:
        pool.submit_task(Task(-1, functools.partial(work.hold, str(gate))))
        wait_until(lambda: work.begun(str(gate)))
        for number in range(20):
            there = functools.partial(work.note_task, Task(number, (str(log), number)))
            pool.submit_task(Task(number, there if number % 2 else functools.partial(here, number), priority=number))
        gate.touch()
    assert [int(line) for line in log.read_text().split()] == list(range(19, -1, -1))
    assert lines == list(range(18, -1, -2))


def test_the_bounds_are_those_of_a_plain_pool(stack, tmp_path):
    gate = tmp_path / "gate"
    with PriorityWorkerPool(1, 1) as pool:
        pool.submit_task(Task(0, functools.partial(work.hold, str(gate))))
        wait_until(lambda: work.begun(str(gate)))
        pool.submit_task(Task(1, 1, priority=1))
        with pytest.raises(QueueFullError):
            pool.submit_task(Task(2, 2, priority=100))
        gate.touch()


# ---- DynamicWorkerPool -----------------------------------------------------------------------------------------------


def test_a_dynamic_pool_grows_and_shrinks_by_one_and_what_runs_is_finished(stack, tmp_path):
    gate = tmp_path / "gate"
    with DynamicWorkerPool(1, 2, 20, interval=3600) as pool:
        assert pool.current_workers == 1
        for number in range(8):
            pool.submit_task(Task(number, functools.partial(work.hold, str(gate))))
        wait_until(lambda: work.begun(str(gate)) == 1)
        assert pool.monitor_load() == 1
        assert pool.current_workers == 2
        wait_until(lambda: work.begun(str(gate)) == 2)
        assert pool.monitor_load() == 0  # At its maximum.
        gate.touch()
        results = [pool.get_result().get(30) for _ in range(8)]
        assert {result.worker_id for result in results} <= {0, 1}
        assert pool.monitor_load() == -1
        assert pool.current_workers == 1
        assert pool.monitor_load() == 0  # At its minimum.
        pool.submit_task(Task(9, work.one))
        assert pool.get_result().get(30).worker_id == 0


def test_a_dynamic_pool_looks_by_itself(stack, tmp_path):
    gate = tmp_path / "gate"
    with DynamicWorkerPool(1, 2, 20, interval=0.02) as pool:
        for number in range(6):
            pool.submit_task(Task(number, functools.partial(work.hold, str(gate))))
        wait_until(lambda: pool.current_workers == 2)
        gate.touch()
        wait_until(lambda: pool.current_workers == 1)


@pytest.mark.acl_role("operator")
def test_a_bound_pool_resizes_real_workers(stack, tmp_path):
    gate = tmp_path / "gate"
    name = next(worker.name for worker in stack.workers if worker.lane == "cpu")
    group = name.partition("@")[0]

    def processes():
        return next(worker.processes for worker in workers() if worker.name == name)

    before = processes()
    pool = DynamicWorkerPool(2, 3, 20, interval=3600, worker_group=group)
    pool.start()
    try:
        for number in range(8):
            pool.submit_task(Task(number, functools.partial(work.hold, str(gate))))
        wait_until(lambda: work.begun(str(gate)) == 2)
        assert pool.monitor_load() == 1
        wait_until(lambda: processes() == 3)
        wait_until(lambda: work.begun(str(gate)) == 3)
        gate.touch()
        for _ in range(8):
            pool.get_result().get(30)
        assert pool.monitor_load() == -1
        wait_until(lambda: pool.monitor_load() == 0 and processes() == 2)  # Not while a process is busy.
    finally:
        gate.touch()
        pool.graceful_shutdown(30)
    wait_until(lambda: processes() == before)


def test_a_pools_load_is_measured(stack, tmp_path):
    gate = tmp_path / "gate"
    with DynamicWorkerPool(2, 4, 20, interval=3600) as pool:
        assert pool.load() == PoolLoad(workers=2, running=0, queued=0, processes=slots("batch"))
        assert pool.load().level is LoadLevel.LOW
        for number in range(2):
            pool.submit_task(Task(number, functools.partial(work.hold, str(gate))))
        wait_until(lambda: pool.load().running == 2)
        assert (pool.load().level, pool.load().utilization) == (LoadLevel.MEDIUM, 1.0)
        for number in range(5):
            pool.submit_task(Task(number, work.one))
        assert pool.load().queued == 5
        assert pool.load().level is LoadLevel.CRITICAL
        gate.touch()
        assert all(pool.get_result().get(30).error is None for _ in range(7))
        assert pool.load().level is LoadLevel.LOW


@pytest.mark.parametrize(
    ("load", "level"),
    [
        (PoolLoad(4, 4, 9, 8), LoadLevel.CRITICAL),
        (PoolLoad(4, 2, 9, 2), LoadLevel.CRITICAL),
        (PoolLoad(4, 3, 9, 8), LoadLevel.HIGH),
        (PoolLoad(4, 4, 8, 8), LoadLevel.MEDIUM),
        (PoolLoad(4, 1, 1, 8), LoadLevel.MEDIUM),
        (PoolLoad(4, 1, 0, 8), LoadLevel.LOW),
    ],
)
def test_a_level_is_what_waits_and_what_runs_against_the_slots(load, level):
    assert load.level is level
