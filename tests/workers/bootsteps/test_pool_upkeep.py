"""What a worker's timer keeps."""

from __future__ import annotations

from kombu.asynchronous.timer import Timer

from graft.workers.bootsteps.pool_upkeep import FEW, drop_cancelled
from tests.stack import run_python, wait_until

SEND = """
from graft.celery import app
from tests.workers.aio.samples import nothing
with app.producer_pool.acquire(block=True) as producer:
    for _ in range({count}):
        nothing.apply_async((1,), queue="default", producer=producer, ignore_result=True)
"""

ASK = """
from graft.celery import app
(answer,) = app.control.broadcast("timer_entries", reply=True, limit=1, timeout=20)
print(*answer.values())
"""


def test_only_cancelled_entries_are_dropped_and_the_order_stays():
    timer, fired = Timer(), []
    entries = [timer.call_at(at, fired.append, (at,)) for at in (9.0, 3.0, 7.0, 1.0, 5.0)]
    entries[2].cancel()
    assert drop_cancelled(timer) == 4
    for _, entry in zip(range(4), (each for _, each in timer if each), strict=False):
        entry()
    assert fired == [1.0, 3.0, 5.0, 9.0]


def test_a_worker_forgets_the_time_limits_of_tasks_that_have_ended(fresh_stack):
    """kombu keeps each until it would have come: an hour of tasks, by default."""
    stack = fresh_stack(cpu=0)
    stack.add_worker("cpu", 2, include=("tests.workers.aio.samples", "tests.workers.timer_entries"))
    stack.wait_ready()
    assert run_python(stack, SEND.format(count=4 * FEW)).returncode == 0
    with stack.connect() as client:
        wait_until(lambda: not client.llen("default") + client.hlen("graft:unacked"), 60, "the tasks to be done")
    said = run_python(stack, ASK).stdout
    assert 0 < int(said) < 2 * FEW, said
