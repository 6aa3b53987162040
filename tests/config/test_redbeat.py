"""RedBeat is told where its Redis is, whatever the broker's address looks like."""

from __future__ import annotations

import warnings

import pytest
from celery import Celery

from graft.config import redbeat
from graft.config.settings import Settings


def app_with(**given: str) -> Celery:
    app = Celery("redbeat-test", set_as_current=False)
    app.config_from_object(redbeat.options(Settings(**given)))
    return app


def test_redbeat_takes_its_address_and_lock_from_us():
    RedBeatConfig = pytest.importorskip("redbeat.schedulers").RedBeatConfig
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # It warns where it has to guess.
        found = RedBeatConfig(app_with(broker_url="redis://:x@example:6390/3"))
    assert found.redis_url == "redis://example:6390/3"
    assert found.redbeat_redis_options["password"] == "x"
    assert found.lock_key == redbeat.LOCK
    assert found.lock_timeout == redbeat.LOCK_TIMEOUT


def test_behind_sentinel_it_asks_for_the_same_master():
    url = "sentinel://:p%40ss@one:26379/2;sentinel://two:26380"
    found = redbeat.options(Settings(broker_url=url, sentinel_master="main"))
    assert found["redbeat_redis_url"] == "redis-sentinel"
    connection = found["redbeat_redis_options"]
    assert connection["sentinels"] == [("one", 26379), ("two", 26380)]
    assert (connection["service_name"], connection["db"], connection["password"]) == ("main", 2, "p@ss")


def test_a_socket_is_an_address_that_redis_py_knows():
    assert redbeat.options(Settings(broker_url="redis+socket:///run/redis.sock"))["redbeat_redis_url"] == (
        "unix:///run/redis.sock"
    )
