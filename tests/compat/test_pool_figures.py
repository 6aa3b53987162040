"""What calls would have taken at home, and what a pool is advised to do."""

from __future__ import annotations

import pytest

from graft.compat.pool_figures import HomeEstimate, PoolShape, made_at, maker


def estimated(processes, cores, *calls):
    estimate = HomeEstimate(processes, cores)
    return sum(estimate.add(seconds, cpu) for seconds, cpu in calls)


def test_calls_take_turns_on_the_pools_processes():
    assert estimated(2, 8, *[(1.0, 1.0)] * 8) == pytest.approx(4.0)
    assert estimated(8, 8, (10.0, 10.0), (1.0, 1.0)) == pytest.approx(10.0)  # No process takes half a call.
    assert estimated(2, 8, (3.0, 3.0), (1.0, 1.0), (1.0, 1.0)) == pytest.approx(3.0)


def test_calls_that_compute_have_no_more_than_the_cores_and_those_that_wait_have():
    assert estimated(8, 2, *[(1.0, 1.0)] * 8) == pytest.approx(4.0)
    assert estimated(8, 2, *[(1.0, 0.0)] * 8) == pytest.approx(1.0)


def test_what_the_program_does_between_two_periods_is_not_counted():
    estimate = HomeEstimate(2, 2)
    first = estimate.add(1.0, 1.0)
    estimate.begin_period()
    assert first + estimate.add(1.0, 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("slots", "calls", "busy", "seconds", "home", "told"),
    [
        (8, 100, 1.0, 3.0, 0.5, "a call takes 10.0 ms, and should take 50 or more"),
        (2, 100, 20.0, 9.0, 5.0, "the workers had 2 slots for its 4 processes"),
        (8, 100, 20.0, 6.0, 5.0, "give the pool more than 4 processes"),
        (4, 100, 20.0, 6.0, 5.0, ""),
        (4, 10, 0.1, 0.3, 0.05, ""),  # Nobody cares for a quarter of a second.
        (8, 0, 0.0, 0.0, 0.0, ""),
    ],
)
def test_the_advice_follows_from_the_figures(slots, calls, busy, seconds, home, told):
    advice = PoolShape("shop.py:21", 4, slots).advice(calls, busy, seconds, home)
    assert told in advice
    assert bool(advice) == bool(told)


def test_a_pool_is_made_where_a_module_outside_of_the_makers_calls_them():
    assert made_at(maker()).startswith("tests/compat/test_pool_figures.py:")
