from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.shared.rate_limiter import Bucket, SharedRateLimiter


@given(st.integers(1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=120))
def test_no_span_of_time_sees_more_than_a_full_bucket_and_its_refill(rate, gaps):
    bucket = Bucket(rate)
    now = full_at = 0.0
    times = []
    for gap in gaps:
        now += gap
        full_at, at = bucket.book(full_at, now)
        assert at >= now
        times.append(at)
    assert times == sorted(times)  # First come, first served.
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate + (times[last] - times[first]) * rate + 1e-6


def test_a_bucket_starts_full():
    bucket, full_at, times = Bucket(5), 0.0, []
    for _ in range(15):
        full_at, at = bucket.book(full_at, 0.0)
        times.append(round(at, 6))
    assert times == [0.0] * 5 + [round(0.2 * n, 6) for n in range(1, 11)]


@pytest.mark.parametrize("rate", [0, 0.5, -1, float("inf"), float("nan")])
def test_a_rate_that_allows_nothing_is_refused(rate):
    with pytest.raises(ValueError, match="per_second"):
        Bucket(rate)


@pytest.fixture
def limiter(redis_stack):
    return SharedRateLimiter(str(uuid4()), 2)


def test_tokens_are_booked_in_the_order_of_asking(limiter):
    waits = [limiter.book(ticket) for ticket in "abcd"]
    assert waits[:2] == [0, 0]
    assert 0 < waits[2] <= 0.5 < waits[3] <= 1.0


def test_a_ticket_has_one_token_however_often_it_asks(limiter):
    waits = [limiter.book("a") for _ in range(5)]
    assert waits == [0] * 5
    limiter.used("a")
    limiter.book("a")
    assert limiter.book("b") > 0


def test_the_last_token_can_be_given_back(limiter):
    for ticket in "abc":
        limiter.book(ticket)
    limiter.cancel("c")
    limiter.cancel("c")
    assert 0 < limiter.book("d") <= 0.5


def test_everything_in_redis_expires(limiter, redis):
    limiter.book("a")
    assert all(redis.ttl(key) > 0 for key in limiter.keys)
