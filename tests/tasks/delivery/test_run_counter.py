from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.delivery import cancellation, poison_isolation, run_counter
from graft.tasks.delivery.run_counter import Delivery, Runs
from graft.tasks.ids import new_id

pytestmark = pytest.mark.acl_role("worker")


class RunsThatDie(Runs):
    """Each run has ended with its process before the next begins."""

    runs = 0

    def begin(self, *args, run_limit=3):
        self.runs += 1
        try:
            return super().begin(*args, is_redelivered=self.runs > 1, run_limit=run_limit)
        finally:
            poison_isolation.leave(self.name[0])


@pytest.fixture
def runs(redis):
    made = RunsThatDie(new_id(), 0)
    yield made
    redis.delete(made.key, made.done_key)


def test_a_run_that_may_be_the_last_is_not_counted_while_another_suspect_runs(redis):
    one, other = Runs(new_id(), 0), Runs(new_id(), 0)

    def begin(runs):
        return runs.begin("batch", [7], is_redelivered=True, run_limit=3)[0].run

    try:
        assert begin(one) == begin(other) == 2
        assert begin(one) == 3
        with pytest.raises(poison_isolation.NotAloneError):
            begin(other)
        poison_isolation.leave(one.name[0])
        assert begin(other) == 3
    finally:
        poison_isolation.leave(other.name[0])
        redis.delete(one.key, other.key)


def test_the_first_run_is_unwatched_and_leaves_no_trace(runs, redis):
    delivery, kept = runs.begin("batch", range(3))
    assert (delivery.run, delivery.is_watched, kept) == (1, False, {})
    assert not redis.exists(runs.key)


def test_the_first_run_of_what_may_run_only_once_is_counted_before_it_begins(runs, redis):
    runs.begin("batch", [7], run_limit=1)
    assert redis.hget(runs.key, "runs") == b"1"
    delivery, _ = runs.begin("batch", [7], run_limit=1)
    assert delivery.is_dead(7, limit=1)


def test_a_run_whose_message_goes_back_while_its_process_lives_is_no_death(runs):
    for _ in range(5):
        delivery, _ = runs.begin("batch", [7])
        assert not delivery.is_dead(7, limit=2)
        runs.survived()


def test_an_envelope_that_comes_back_is_watched(runs):
    runs.begin("batch", range(3))
    delivery, _ = runs.begin("batch", range(3))
    assert (delivery.run, delivery.is_watched) == (2, True)


def test_the_first_killer_found_takes_the_blame_for_the_unwatched_run(runs):
    positions = range(10, 13)
    runs.begin("batch", positions)
    runs.begin("batch", positions)
    runs.starting(10)
    runs.finished(10, (True, b"value"))
    runs.starting(11)  # … and the process dies.
    delivery, kept = runs.begin("batch", positions)
    assert kept == {10: (True, b"value")}
    assert delivery.kills(11) == 2
    assert delivery.kills(12) == 0
    assert not delivery.is_dead(11, limit=3)
    runs.starting(11)
    delivery, _ = runs.begin("batch", positions)
    assert delivery.is_dead(11, limit=3)


def test_a_lone_item_is_to_blame_for_every_run(runs):
    for _ in range(3):
        delivery, _ = runs.begin("batch", [7])
        assert not delivery.is_dead(7, limit=3)
    delivery, _ = runs.begin("batch", [7])
    assert delivery.is_dead(7, limit=3)


def test_once_an_item_has_used_up_its_runs_the_others_have_one_death_each(runs):
    runs.begin("batch", range(3))
    runs.begin("batch", range(3))
    runs.mark_poisoned()
    runs.starting(2)
    delivery, _ = runs.begin("batch", range(3))
    assert delivery.is_dead(2, limit=3)
    assert not delivery.is_dead(1, limit=3)


def test_a_run_that_its_worker_ended_on_purpose_is_no_death(runs, redis):
    for _ in range(5):
        delivery, _ = runs.begin("batch", [7], run_limit=1)
        assert not delivery.is_dead(7, limit=1)
        run_counter.pardon([(*runs.name, "")], redis)


def test_an_item_is_pardoned_for_the_stopped_run_and_no_other(runs, redis):
    positions = range(3)
    runs.begin("batch", positions)
    run_counter.pardon([(*runs.name, "")], redis)
    runs.begin("batch", positions)
    runs.starting(1)  # … and the process dies.
    runs.begin("batch", positions)
    runs.starting(0)
    runs.finished(0, (True, b"value"))
    runs.starting(1)
    run_counter.pardon([(*runs.name, "")], redis)
    delivery, _ = runs.begin("batch", positions)
    assert delivery.kills(1) == 1
    run_counter.pardon([(*runs.name, "")], redis)  # Stopped before anything began again.
    delivery, _ = runs.begin("batch", positions)
    assert (delivery.kills(1), delivery.kills(2)) == (1, 0)


def test_a_cancelled_batch_is_seen_on_arrival(runs, redis):
    batch = new_id()
    cancellation.cancel(batch, ttl=60)
    delivery, _ = runs.begin(batch, [0])
    assert delivery.cancelled
    assert 0 < redis.ttl(cancellation.CANCEL_KEY + batch) <= 60
    assert redis.ttl(cancellation.LIST) >= redis.ttl(
        cancellation.CANCEL_KEY + batch
    )  # Others may have asked for longer.


def test_every_record_expires(runs, redis):
    runs.begin("batch", range(2))
    runs.begin("batch", range(2))
    runs.finished(1, (False, b"error"))
    assert redis.ttl(runs.key) > 0
    assert redis.ttl(runs.done_key) > 0


@given(starts=st.dictionaries(st.integers(0, 20), st.integers(1, 5)), limit=st.integers(1, 5))
def test_an_item_that_never_started_is_never_dead(starts, limit):
    delivery = Delivery(3, starts=starts, blamed=min(starts, default=None))
    assert not any(delivery.is_dead(position, limit) for position in range(21) if position not in starts)


def test_a_delivery_is_counted_once_however_often_its_worker_asks(redis):
    """The reply to the first question may be lost; a run that never was would be a death."""
    first, second = (Runs("counted-once", 0, delivery=tag) for tag in ("first", "second"))
    try:
        assert [first.begin("batch", [7], is_redelivered=True, run_limit=3)[0].run for _ in range(3)] == [2, 2, 2]
        assert second.begin("batch", [7], is_redelivered=True, run_limit=3)[0].run == 3
    finally:
        poison_isolation.leave("counted-once")
        redis.delete(first.key, first.done_key)


def test_a_delivery_is_pardoned_once_and_leaves_the_item_of_another_run_alone(redis):
    frozen, running = (Runs("pardoned-once", 0, delivery=tag) for tag in ("frozen", "running"))
    try:
        running.begin("batch", [7, 8], is_redelivered=True, run_limit=3)
        running.starting(8)
        for _ in range(2):
            frozen.survived()
        assert redis.hget(running.key, "pardons") == b"1"
        assert redis.hget(running.key, "current") == b"8"
        assert redis.hget(running.key, "start:8") == b"1"
    finally:
        poison_isolation.leave("pardoned-once")
        redis.delete(running.key, running.done_key)
