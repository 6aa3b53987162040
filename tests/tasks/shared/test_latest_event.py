"""The latest of several events is handled, and no other."""

from __future__ import annotations

from uuid import uuid4

from graft.tasks.shared.latest_event import SharedLatest
from tests.stack import wait_until


def test_only_the_latest_event_is_handled(redis_stack):
    events = SharedLatest(str(uuid4()))
    first, second = events.offer(), events.offer()
    assert second == first + 1
    assert events.try_handle(first) == -1
    assert events.try_handle(second) == 0
    assert events.try_handle(second) == 0  # The reply was lost.


def test_two_that_are_handled_are_an_interval_apart(redis_stack, redis):
    events = SharedLatest(str(uuid4()), 0.2, kind="throttle")
    assert events.try_handle(events.offer()) == 0
    number = events.offer()
    assert 0 < events.try_handle(number) <= 0.2
    wait_until(lambda: events.try_handle(number) == 0)
    assert all(redis.pttl(key) > 0 for key in events.keys)
