"""One time for the deployment: Redis's, whatever the clock of day of this machine says meanwhile."""

from __future__ import annotations

import time

import pytest
import redis as redis_py

from graft.config import redis_clock
from graft.config.deployment import app
from graft.config.redis_client import server_time

NEAR = 30.0  # Seconds; the clocks below are wrong by far more.


@pytest.mark.redis
@pytest.mark.parametrize("wrong", [120.0, -120.0, 86_400.0, -86_400.0])
def test_a_clock_that_jumps_moves_neither_now_nor_what_celery_takes_for_it(redis, monkeypatch, wrong):
    redis_clock.now()
    there = time.time
    monkeypatch.setattr(time, "time", lambda: there() + wrong)
    assert abs(redis_clock.now() - server_time(redis)) < NEAR
    assert abs(app().now().timestamp() - server_time(redis)) < NEAR


@pytest.mark.redis
def test_a_process_whose_clock_is_wrong_from_its_start_has_the_right_time(redis, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert abs(redis_clock.RedisClock().now() - server_time(redis)) < NEAR


def test_without_an_answer_of_redis_the_clock_of_this_machine_is_taken(monkeypatch):
    asked = []

    def refuse(**_: object) -> None:
        asked.append(1)
        raise redis_py.ConnectionError("nothing listens there")

    monkeypatch.setattr(redis_clock, "broker", refuse)
    clock = redis_clock.RedisClock()
    assert abs(clock.now() - time.time()) < NEAR
    clock.now()
    assert len(asked) == 1  # And not again for each message of an outage.
