"""The same for the tasks of pools, which have a ledger of their own and are taken by messages that do not name them."""

from __future__ import annotations

import pytest

from graft.tasks.delivery.run_counter import Runs, pardon
from graft.tasks.ids import new_id
from graft.tasks.pools.state import PARTS, TO_NOBODY, Entry, Holder, Limits, RedisLedger
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
        assert client.zcard("graft:dead-letters:by-time") == 0  # Nor are the messages buried that had taken the tasks.


@pytest.fixture
def ledger(redis):
    """Of a pool with two slots and three tasks."""
    ledger = RedisLedger.open(f"suspects {new_id()}", Limits("test", 2, 10), 2)
    ledger.start()
    ledger.add("client", 1, 0, [Entry(0.0, "", TO_NOBODY, content) for content in ("first", "second", "third")])
    yield ledger
    ledger.forget(keep_results=False)


def a_holder(**options):
    return Holder("", new_id(), new_id(), **options)


def kill_first(ledger, times):
    for _ in range(times):
        holder = a_holder()
        assert ledger.begin(holder).taken.content == "first"
        again = Holder("", holder.ticket, new_id(), has_returned=True)
        assert ledger.begin(again).what == "done"


@pytest.mark.acl_role("worker")
def test_a_task_that_must_run_alone_keeps_its_place_and_a_slot(ledger):
    kill_first(ledger, 2)
    assert ledger.begin(a_holder(suspects="tell")).what == "suspect"
    assert ledger.begin(a_holder(suspects="skip")).taken.content == "second"
    assert ledger.begin(a_holder(suspects="skip")).what == "done"
    assert ledger.standing().waiting == 2
    taken = ledger.begin(a_holder(suspects="take")).taken
    assert (taken.content, taken.losses) == ("first", 2)


@pytest.mark.acl_role("worker")
def test_a_message_that_came_back_takes_nothing_and_is_replaced(ledger, redis):
    sent = redis.zrange(ledger.keys[PARTS.index("tickets")], 0, -1)
    turn = ledger.begin(Holder("", sent[0].decode(), new_id(), has_returned=True))
    assert turn.what == "done"
    assert len(turn.tickets) == 1
    assert ledger.standing().running == 0


@pytest.mark.acl_role("worker")
def test_a_task_that_died_once_needs_not_run_alone(ledger):
    kill_first(ledger, 1)
    taken = ledger.begin(a_holder(suspects="tell")).taken
    assert (taken.content, taken.losses) == ("first", 1)


@pytest.mark.acl_role("worker")
def test_a_task_has_not_died_whose_worker_was_told_to_stop(ledger, redis):
    holder = a_holder()
    ledger.begin(holder)
    run = Runs(holder.ticket, 0)
    run.begin("pool", [0])
    assert pardon([run.name], redis) == 1
    ledger.begin(Holder("", holder.ticket, new_id(), has_returned=True))
    taken = ledger.begin(a_holder()).taken
    assert (taken.content, taken.losses) == ("first", 0)
    run.close()
