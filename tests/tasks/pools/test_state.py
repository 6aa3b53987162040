"""A pool's bounds and its order, as Redis keeps them."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from graft.config import keys
from graft.tasks.ids import new_id
from graft.tasks.pools.state import HAS_TO_WAIT, MUST_NOT, Limits, RedisPool, Waiting


@pytest.fixture
def make(redis):
    made = []

    def make(workers=2, capacity=3):
        made.append(RedisPool.open(f"test {new_id()}", Limits("test", workers, capacity), workers))
        return made[-1]

    yield make
    for pool in made:
        pool.forget(keep_results=False)


def test_places_are_the_queue_and_what_idle_workers_are_about_to_take(make):
    pool = make(workers=2, capacity=3)
    assert pool.reserve("me", 10, ready=2) == ("new", 3, 0)
    pool.enter("running")
    assert pool.reserve("me", 10, ready=1) == ("running", 1, 0)
    assert pool.reserve("me", 10, ready=9) == ("running", 1, 0)
    assert pool.reserve("me", 10, ready=9) == ("running", 0, 0)
    assert pool.reserve("me", 10, ready=9, unused=2) == ("running", 2, 0)
    pool.begin("one", 0.0)
    pool.finish("one", "me", 1, 0, 0.1)
    assert pool.reserve("me", 10, ready=9) == ("running", 1, 0)
    status = pool.status()
    assert (status.submitted, status.completed, status.unfinished) == (6, 1, 5)


def test_one_client_leaves_places_to_another(make):
    pool = make(workers=1, capacity=40)
    pool.tend("other")
    assert pool.reserve("me", 100, ready=1) == ("new", 10, 1)


@pytest.mark.acl_role("worker")
def test_a_slot_that_comes_free_goes_to_the_best_that_waits(make):
    pool = make(workers=1)
    pool.enter("running")
    assert pool.begin("running", 0.0) == 0
    waiting = [Waiting("2 late", -1.0, "late"), Waiting("1 early", -1.0, "early"), Waiting("9 best", -5.0, "best")]
    assert pool.park(waiting) == []
    assert pool.begin("worse", 0.0) == HAS_TO_WAIT
    order = []
    member = "running"
    while due := pool.finish(member, "me", 1, 0, 0.1):
        order += due
        member, score, _ = next(one for one in waiting if one.message == due[0].decode())
        assert pool.begin(member, score) == 0
    assert order == [b"best", b"early", b"late"]


@pytest.mark.acl_role("worker")
def test_what_is_on_its_way_makes_room_for_a_better_one_that_waits(make):
    pool = make(workers=1)
    pool.enter("running")
    assert pool.park([Waiting("1", 0.0, "slow")]) == [b"slow"]
    assert pool.park([Waiting("2", -9.0, "urgent")]) == []
    assert pool.begin("1", 0.0) == HAS_TO_WAIT
    assert pool.park([Waiting("1", 0.0, "slow")]) == [b"urgent"]
    assert pool.begin("2", -9.0) == 0


@pytest.mark.acl_role("worker")
def test_what_is_withdrawn_does_not_begin(make):
    pool = make(workers=1)
    pool.enter("running")
    assert pool.park([Waiting("1", 0.0, "first"), Waiting("2", 0.0, "second")]) == [b"first"]
    assert pool.withdraw("me", {"1": 1, "2": 1}) == (["2"], [])
    assert pool.begin("1", 0.0) == MUST_NOT


@pytest.mark.acl_role("worker")
def test_a_silent_client_has_died_and_what_only_it_could_run_is_dropped(make, monkeypatch):
    pool = make(workers=1)
    pool.enter("running")
    pool.reserve("dead", 2, ready=1)
    pool.park([Waiting("1", 0.0, "@dead"), Waiting("2", 0.0, "@dead")])
    monkeypatch.setattr("graft.tasks.pools.state.CLIENT_LEASE", -1.0)
    pool.tend("alive")
    status = pool.status()
    assert (status.unfinished, status.abandoned) == (0, 1)
    assert pool.begin("3", 0.0) == 0


STEPS = st.tuples(st.sampled_from(["begin", "park", "finish", "grow", "shrink"]), st.integers(0, 5))


@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=40))
def test_no_more_run_than_there_are_slots(make, steps):
    pool, limit, numbers = make(workers=2), 2, count()
    pool.enter("running")
    running = {}
    due = []
    for step, value in steps:
        if step == "begin":
            member = f"{next(numbers):03}"
            room = pool.status().running < limit
            if (slot := pool.begin(member, value)) >= 0:
                assert room
                running[member] = slot
        elif step == "park":
            due += pool.park([Waiting(f"{next(numbers):03}", value, f"{next(numbers):03}:{value}")])
        elif step == "finish" and running:
            due += pool.finish(running.popitem()[0], "me", 1, 0, 0.0)
        elif step in ("grow", "shrink"):
            limit = max(1, limit + (1 if step == "grow" else -1))
            due += pool.resize(limit).due
        assert len(set(running.values())) == len(running)
    status = pool.status()
    assert status.running == len(running)


def test_what_was_killed_has_failed_and_is_counted_once(make):
    pool = make(workers=3, capacity=10)
    pool.enter("running")
    pool.reserve("me", 6, ready=3)
    assert [pool.begin(member, 0.0, tasks=tasks) for member, tasks in (("a", 3), ("b", 1))] == [0, 1]
    assert pool.begin("own thread", 0.0, "@me") == 2
    change = pool.enter("closed", "me")
    assert sorted(change.running) == ["a", "b", "own thread"]
    pool.finish("b", "me", 1, 0, 0.1)
    found = pool.killed(change.running)
    assert [(one.member, one.slot) for one in found] == [("a", 0)]
    assert pool.killed(change.running) == []
    pool.finish("a", "me", 3, 0, 0.1)  # A report that came too late.
    status = pool.status()
    assert (status.completed, status.failed, status.abandoned, status.running) == (4, 3, 1, 1)


@pytest.mark.acl_role("worker")
def test_a_run_whose_message_went_back_gives_no_slot_back(make, redis):
    pool = make(workers=1)
    pool.enter("running")
    pool.reserve("me", 1, ready=1)
    assert pool.begin("one", 0.0) == 0
    late, present = new_id(), new_id()
    redis.set(keys.RETURNED + late, 1, ex=60)

    def end(delivery):
        with redis.pipeline(transaction=False) as pipe:
            pool.finish_on(pipe, "one", "me", "completed", 1, 0, 0.1, [0.1], [b"result"], delivery=delivery)
            pipe.execute()

    end(late)  # Another run is in the slot.
    assert pool.begin("two", 0.0) == HAS_TO_WAIT
    assert (pool.status().completed, redis.llen(pool.results_key)) == (0, 0)
    end(present)
    assert pool.begin("two", 0.0) == 0
    assert (pool.status().completed, redis.llen(pool.results_key)) == (1, 1)
