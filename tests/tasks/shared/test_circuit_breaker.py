from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.tasks.shared.circuit_breaker import BreakerRules, Circuit, SharedBreaker
from graft.tasks.shared.primitive import IN_USE, DifferentLimitsError

STEPS = st.lists(st.sampled_from(["admit", "succeeded", "failed", "abandoned"]), max_size=25)


def step(rules, circuit, what, now):
    if what == "admit":
        return rules.admit(circuit, now)[0]
    return rules.failed(circuit, now) if what == "failed" else getattr(rules, what)(circuit)


@given(st.integers(1, 4), st.integers(1, 4), STEPS)
def test_it_is_open_only_after_enough_failures_in_a_row(failures, successes, steps):
    rules, circuit, row = BreakerRules(failures, successes, 1000), Circuit(), 0
    for what in steps:
        circuit = step(rules, circuit, what, 1.0)
        if circuit.state == "closed":
            row = row + 1 if what == "failed" else 0 if what == "succeeded" else row
            assert circuit.failures == row < failures
    if circuit.state == "open":
        assert not rules.admit(circuit, 1000.9)[1]
        half_open, runs = rules.admit(circuit, 1001.0)
        assert runs
        assert half_open.state == "half_open"


def test_a_failure_while_open_renews_the_time_of_the_last_one():
    rules = BreakerRules(1, 1, 10)
    circuit = rules.failed(Circuit(), 0.0)
    circuit = rules.failed(circuit, 5.0)
    assert not rules.admit(circuit, 14.9)[1]
    assert rules.admit(circuit, 15.0)[1]


def test_a_trial_that_is_never_answered_blocks_only_for_the_timeout():
    rules = BreakerRules(1, 1, 10, half_open_limit=1)
    circuit, runs = rules.admit(rules.failed(Circuit(), 0.0), 10.0)
    assert runs
    assert not rules.admit(circuit, 19.9)[1]
    assert rules.admit(circuit, 20.0)[1]


@pytest.mark.usefixtures("redis_stack")
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([0, 1000]), st.sampled_from([None, 1, 2]), STEPS)
def test_the_shared_one_obeys_the_same_rules(failures, successes, timeout, limit, steps):
    rules = BreakerRules(failures, successes, timeout, limit)
    shared, circuit = SharedBreaker(str(uuid4()), rules), Circuit()
    now = 10_000.0
    for what in steps:
        if what == "admit":
            circuit, runs = rules.admit(circuit, now)
            assert shared.admit() is runs
        else:
            circuit = step(rules, circuit, what, now)
            shared.record(what)
        assert timeless(shared.circuit()) == timeless(circuit)


@pytest.mark.usefixtures("redis_stack")
def test_two_processes_with_different_rules_for_one_name_are_told():
    name = str(uuid4())
    assert SharedBreaker(name, BreakerRules(5, 3, 30.0)).admit()
    with pytest.raises(DifferentLimitsError, match=r"failure_threshold=5.*failure_threshold=2.*give both the same"):
        SharedBreaker(name, BreakerRules(2, 3, 30.0)).admit()
    assert SharedBreaker(name, BreakerRules(5, 3, 30.0)).admit()


@pytest.mark.usefixtures("redis_stack")
def test_a_name_that_nobody_used_for_a_while_takes_new_rules(redis):
    breaker = SharedBreaker(str(uuid4()), BreakerRules(5, 3, 30.0))
    assert breaker.admit()
    redis.hset(breaker.keys[0], "used", redis.time()[0] - IN_USE - 1)
    assert SharedBreaker(breaker.name, BreakerRules(2, 3, 30.0)).admit()


def timeless(circuit):
    return replace(circuit, failed_at=0.0, tried_at=0.0)
