"""The same for the tasks of pools, which are items like any other; their slots outlive the process that ran them."""

from __future__ import annotations

import pytest

from graft.tasks.ids import new_id
from graft.tasks.pools.state import HAS_TO_WAIT, Limits, RedisPool
from tests.stack import run_among_deaths

PROGRAM = """
from functools import partial
import graft
from graft.compat.worker_pool import Task, WorkerPool
from tests import samples

pool = WorkerPool(2, 20)
pool.start()
pool.submit_task(Task("killer", partial(samples.kill_worker, 1.0)))
pool.submit_task(Task("neighbour", partial(samples.sleep, 2.0)))
for number in range(2):
    pool.submit_task(Task(f"next {number}", partial(samples.sleep, 0.1)))
other = graft.submit(samples.sleep, [2.0])
results = [pool.get_result().get(120) for _ in range(4)]
print(*sorted(f"{result.task_id}: {result.output or type(result.error).__name__}" for result in results), sep=", ")
print(other.collect(120))
pool.graceful_shutdown(30)
"""


def test_neighbours_of_a_task_that_kills_its_worker_run_in_the_end(fresh_stack):
    stack = fresh_stack(cpu=3)
    output, deaths = run_among_deaths(stack, PROGRAM, {"cpu": 3})
    assert output == "killer: PoisonedError, neighbour: 2.0, next 0: 0.1, next 1: 0.1\n[2.0]\n"
    assert deaths == 3
    with stack.connect() as client:
        assert client.zcard("graft:dead-letters:by-time") == 1  # The killer alone.


@pytest.fixture
def pool(redis):
    """A pool with two slots."""
    pool = RedisPool.open(f"suspects {new_id()}", Limits("test", 2, 10), 2)
    pool.enter("running")
    yield pool
    pool.forget(keep_results=False)


@pytest.mark.acl_role("worker")
def test_what_has_to_run_alone_keeps_its_slot_while_it_waits(pool):
    slot = pool.begin("first", 0.0)
    pool.step_back("first", slot)
    assert {slot, pool.begin("second", 0.0)} == {0, 1}
    assert pool.begin("third", 0.0) == HAS_TO_WAIT
    assert pool.begin("first", 0.0) == slot


@pytest.mark.acl_role("worker")
def test_what_comes_back_goes_on_in_its_slot_whatever_waits(pool):
    slot = pool.begin("first", 0.0)
    pool.begin("second", 0.0)
    assert pool.park([("better", -9.0, "its message")]) == []
    assert pool.begin("first", 0.0) == slot
    assert pool.status().running == 2
