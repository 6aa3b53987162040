"""A window over all processes: how many, in which order, and what another rate is told."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from graft.tasks.shared.primitive import DifferentLimitsError
from graft.tasks.shared.rate_window import LONGEST, Rate, SharedRate


def rate(count, seconds, name=None):
    return SharedRate(name or str(uuid4()), Rate(count, seconds))


def test_a_window_admits_its_number_and_then_says_when(redis_stack):
    limit = rate(3, 60)
    assert [limit.take(str(number)) for number in range(3)] == [0.0] * 3
    assert 58 < limit.take("late") <= 60


def test_a_window_slides(redis_stack):
    limit = rate(2, 0.5)
    assert limit.take("a") == 0
    time.sleep(0.3)
    assert limit.take("b") == 0
    wait = limit.take("c")
    assert 0 < wait <= 0.2
    time.sleep(wait)
    assert limit.take("c") == 0  # Where the first has left,
    assert limit.take("d") > 0  # and the second has not.


def test_those_that_wait_are_told_times_one_after_the_other(redis_stack):
    limit = rate(2, 10)
    for ticket in "ab":
        limit.take(ticket)
    waits = [limit.take(ticket) for ticket in "cdefg"]
    assert [round(wait / 10) for wait in waits] == [1, 1, 2, 2, 3]

    assert limit.take("c") == pytest.approx(waits[0], abs=0.5)  # It has its place when it asks again.
    limit.withdraw("c")
    assert limit.take("e") <= 10


def test_a_long_wait_is_asked_about_every_minute(redis_stack):
    limit = rate(1, 86400)
    limit.take("a")
    assert limit.take("b") == LONGEST


def test_two_processes_with_different_rates_for_one_name_are_told(redis_stack):
    name = str(uuid4())
    rate(10, 60, name).take("a")
    with pytest.raises(DifferentLimitsError, match=r"in use with 10/minute, and this process asks for 20/minute"):
        rate(20, 60, name).take("b")


def test_nothing_is_left_behind(redis_stack, redis):
    limit = rate(1, 0.2)
    limit.take("a")
    limit.take("b")
    assert all(redis.ttl(key) > 0 or not redis.exists(key) for key in limit.keys)
    assert redis.pttl(limit.keys[0]) <= 1200
