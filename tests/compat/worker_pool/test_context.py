"""Tasks of a pool are cancelled one by one, and as a group: by hand, by a deadline, with the parent."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from graft.compat import worker_pool as wp
from graft.compat.worker_pool import Context, PriorityWorkerPool, Task, WorkerPool
from graft.tasks.errors import CancelledBatchError
from tests.compat.async_patterns.programs import program
from tests.compat.worker_pool import work
from tests.compat.worker_pool.test_pool import held
from tests.stack import wait_until


@pytest.fixture
def gate(tmp_path):
    yield (path := tmp_path / "gate")
    path.touch()


def take(pool, number):
    return {result.task_id: result for result in (pool.get_result().get(60) for _ in range(number))}


@pytest.mark.parametrize("kind", [WorkerPool, PriorityWorkerPool])
def test_a_task_that_waits_is_cancelled_and_leaves_its_place(stack, gate, kind):
    with kind(1, 3) as pool:
        held(pool, gate, 1)
        for number in (1, 2, 3):
            pool.submit_task(Task(number, work.one))
        with pytest.raises(wp.QueueFullError):
            pool.submit_task(Task(4, work.one))
        assert pool.cancel_task(2)
        (cancelled,) = take(pool, 1).values()
        assert (cancelled.task_id, cancelled.output) == (2, None)
        assert isinstance(cancelled.error, CancelledBatchError)
        pool.submit_task_with_timeout(Task(5, work.one), 30)
        gate.touch()
        assert {number: result.output for number, result in take(pool, 4).items() if number} == {1: 1, 3: 1, 5: 1}
        assert not pool.cancel_task(2)
        figures = pool.statistics()
    assert (figures["submitted"], figures["completed"], figures["abandoned"]) == (5, 4, 1)


def test_cancelling_what_runs_ends_it_only_when_asked_to(stack, gate):
    with WorkerPool(1, 3) as pool:
        held(pool, gate, 1, task_id=7)
        assert pool.cancel_task(7)
        pool.submit_task(Task(8, work.one))
        assert pool.statistics()["running"] == 1
        assert pool.cancel_task(7, running=True)
        found = take(pool, 2)  # The gate is still shut.
    assert found[8].output == 1
    assert isinstance(found[7].error, CancelledBatchError)
    assert "7 was cancelled" in str(found[7].error)


def test_a_task_among_others_in_one_message_is_cancelled_alone(stack, gate):
    with WorkerPool(1, 100) as pool:
        for number in range(40):  # How long they take is known then, and those that wait share messages.
            pool.submit_task(Task(number, partial(work.double, Task(number, number))))
        take(pool, 40)
        held(pool, gate, 1, task_id=-1)
        for number in range(40):
            pool.submit_task(Task(number, partial(work.double, Task(number, number))))
        assert all(pool.cancel_task(number) for number in range(0, 40, 2))
        gate.touch()
        found = take(pool, 41)
    assert all(isinstance(found[number].error, CancelledBatchError) for number in range(0, 40, 2))
    assert [found[number].output for number in range(1, 40, 2)] == [2 * number for number in range(1, 40, 2)]


def test_a_deadline_ends_what_runs_and_what_waits_of_its_group_alone(stack, gate):
    with WorkerPool(2, 20) as pool:
        context = Context(1.0)
        for number in (1, 2, 3, 4):
            pool.submit_task(Task(number, work.forever if number < 3 else work.one), context=context)
        pool.submit_task(Task(9, work.one))
        found = take(pool, 5)
        assert context.wait(30)
        with pytest.raises(wp.DeadlineExceededError, match=r"^context deadline exceeded$"):
            pool.submit_task(Task(5, work.one), context=context)
    assert found[9].output == 1
    assert all(isinstance(found[number].error, TimeoutError) for number in (1, 2, 3, 4))
    assert all(found[number].error is context.err() for number in (1, 2, 3, 4))


def test_a_context_that_ends_leaves_what_has_ended_before_and_ends_its_children(stack):
    pool = WorkerPool(1, 20)
    with Context(3600) as parent:
        child, other = Context(parent=parent), Context()
        assert 0 < child.left <= 3600
        pool.submit_task(Task(1, work.one), context=child)
        pool.start()
        assert take(pool, 1)[1].output == 1
        pool.submit_task(Task(2, work.forever), context=child)
        pool.submit_task(Task(3, work.one), context=other)
    assert isinstance(child.err(), wp.ContextCancelledError)
    assert other.err() is None
    found = take(pool, 2)
    assert found[3].output == 1
    assert str(found[2].error) == "context canceled"
    pool.graceful_shutdown(30)


@pytest.mark.parametrize("name", [None, "hurried"])
def test_a_context_that_ends_at_any_moment_of_the_sending_ends_what_is_sent(stack, name):
    with WorkerPool(2, 20, name=name) as pool:
        for number in range(40):
            context = Context()
            pool.submit_task(Task(number, work.forever), context=context)
            time.sleep(number % 20 * 1e-4)
            context.cancel()
            assert isinstance(take(pool, 1)[number].error, wp.ContextCancelledError | CancelledBatchError)


OUTAGE = """
import sys
from graft.compat.worker_pool import Context, Task, WorkerPool
from tests.compat.async_patterns.programs import program
from tests.compat.worker_pool import work
with WorkerPool(1, 5) as pool:
    context = Context()
    pool.submit_task(Task(1, work.forever), context=context)
    pool.submit_task(Task(2, work.one), context=context)
    while not pool.statistics()["running"]:
        pass
    print("runs", flush=True)
    sys.stdin.readline()
    context.cancel()
    print("cancelled", flush=True)
    for _ in range(2):
        print(pool.get_result().get(60).error, flush=True)
"""


def test_what_could_not_be_withdrawn_in_an_outage_is_withdrawn_after_it(fresh_stack):
    stack = fresh_stack(cpu=1, GRAFT_CONNECT_TIMEOUT="1")
    with program(stack, OUTAGE) as client:
        assert client.stdout.readline() == "runs\n"
        stack.kill_redis()
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "cancelled\n"
        stack.start_redis()
        assert [client.stdout.readline() for _ in range(2)] == ["context canceled\n"] * 2


def test_a_submission_that_waits_for_room_ends_with_its_context(stack, gate):
    with WorkerPool(1, 1) as pool:
        held(pool, gate, 1)
        pool.submit_task(Task(1, work.one))
        with pytest.raises(wp.DeadlineExceededError):
            pool.submit_task_with_timeout(Task(2, work.one), 60, context=Context(0.3))
        gate.touch()


def test_in_one_process_what_waits_is_cancelled_and_what_runs_goes_on(stack, monkeypatch):
    started, end = threading.Event(), threading.Event()

    def stuck():
        started.set()
        return end.wait(60)

    with WorkerPool(1, 5, place="local") as pool, Context() as context:
        pool.submit_task(Task(1, stuck), context=context)
        assert started.wait(30)
        pool.submit_task(Task(2, stuck), context=context)
        context.cancel()
        assert take(pool, 1)[2].error is context.err()
        end.set()
        assert take(pool, 1)[1].output is True


def test_a_named_pool_says_so_in_its_stream(stack, tmp_path, gate):
    with WorkerPool(1, 5, name=f"named {tmp_path.name}") as pool, Context() as context:
        held(pool, gate, 1)
        pool.submit_task(Task(1, work.forever), context=context)
        wait_until(lambda: pool.statistics()["queued"] == 1)  # It may be on its way still.
        context.cancel()
        assert isinstance(take(pool, 1)[1].error, wp.ContextCancelledError | CancelledBatchError)
        gate.touch()
