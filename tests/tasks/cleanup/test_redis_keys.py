"""What Celery leaves behind goes away; what is in use stays."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.cleanup import redis_keys
from graft.tasks.durable import record
from graft.tasks.ids import new_id
from tests.workers.redis_server import wait_until

pytestmark = pytest.mark.acl_role("janitor")

PIDBOX = "_kombu.binding.celery.pidbox"


@pytest.fixture
def impatient(monkeypatch):
    for name in ("REPLY_IDLE", "BINDING_IDLE", "RECORD_IDLE"):
        monkeypatch.setattr(redis_keys, name, 0)


def test_replies_that_nobody_collects_expire(redis, impatient):
    left, live = f"{new_id()}.reply.celery.pidbox", f"{new_id()}.reply.celery.pidbox"
    redis.lpush(left, "reply")
    redis.lpush(live, "reply")
    redis.expire(live, 10)
    assert redis_keys.tidy()["replies"] == 1
    assert 0 < redis.ttl(left) <= redis_keys.REPLY_TTL
    assert 0 < redis.ttl(live) <= 10
    redis.delete(left, live)


def test_results_without_an_expiry_get_one(redis):
    key = f"celery-task-meta-{new_id()}"
    redis.set(key, "{}")
    assert redis_keys.tidy()["results"] == 1
    assert redis.ttl(key) > 0
    redis.delete(key)


def test_bindings_of_workers_that_are_gone_are_removed(redis, stack, impatient):
    alive = stack.worker.name
    gone = f"\x06\x16\x06\x16gone-{new_id()}@host.celery.pidbox"
    before = redis.smembers(PIDBOX)
    assert [member for member in before if alive.encode() in member]
    redis.sadd(PIDBOX, gone)
    redis_keys.tidy()
    wait_until(lambda: redis_keys.tidy() and not redis.sismember(PIDBOX, gone), "the orphan is removed")
    assert [member for member in redis.smembers(PIDBOX) if alive.encode() in member]


def test_a_record_that_no_sweep_would_find_is_found_again(redis, impatient):
    message = {"body": "", "headers": {}, "properties": {"delivery_info": {"exchange": "", "routing_key": "heavy"}}}
    redis.hset("graft:unacked", "junk", json.dumps([message, "", "heavy"]))
    try:
        wait_until(lambda: redis_keys.tidy()["records"] == 1, "the record is indexed")
        assert redis.zscore("graft:unacked_index", "junk") == 0 or not redis.hexists("graft:unacked", "junk")
    finally:
        redis.hdel("graft:unacked", "junk")
        redis.zrem("graft:unacked_index", "junk")
        redis.delete("heavy")


@given(
    found=st.sets(st.sampled_from("abcdef")),
    seen=st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 100)),
    patience=st.floats(0.1, 50),
)
def test_only_what_was_seen_long_ago_and_is_seen_still_is_abandoned(found, seen, patience):
    old, new = redis_keys.abandoned(found, seen, 100.0, patience)
    assert old == {name for name in found & seen.keys() if 100.0 - seen[name] >= patience}
    assert new == found - seen.keys()
    assert not old & new


def test_time_is_wall_clock_because_runs_are_in_different_processes(redis):
    redis_keys._old(redis, "test", ["x"], 3600)
    assert abs(redis.zscore(f"{redis_keys.SEEN}:test", "x") - time.time()) < 60
    redis.delete(f"{redis_keys.SEEN}:test")


def test_the_id_of_a_durable_batch_goes_once_it_has_expired(redis):
    gone, known = new_id(), new_id()
    redis.zadd(record.ALL, {gone: 1, known: 2})
    redis.hset(record.RECORD + known, "total", 1)
    assert redis_keys.tidy()["batches"] == 1
    assert redis.zrange(record.ALL, 0, -1) == [known.encode()]
    redis.delete(record.RECORD + known, record.ALL)


def test_the_name_of_a_callable_goes_once_its_figures_have_expired(redis):
    gone, known = f"gone:{new_id()}", f"known:{new_id()}"
    redis.sadd("graft:figures", gone, known)
    redis.hset(f"graft:figures:{known}", "items", 1)
    redis_keys.tidy()
    assert not redis.sismember("graft:figures", gone)
    assert redis.sismember("graft:figures", known)
    redis.delete(f"graft:figures:{known}")
