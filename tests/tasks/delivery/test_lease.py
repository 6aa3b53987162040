"""A run whose message went back to its queue concludes nothing; one that cannot ask blames nobody."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.exceptions import Reject

from graft.config import keys
from graft.config.deployment import app, current
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.delivery import lease
from graft.tasks.ids import new_id
from graft.workers.result_patch import STORE, STORES, StoreArguments

pytestmark = pytest.mark.acl_role("worker")


@pytest.fixture
def task(redis):
    name = new_id()
    yield name
    redis.delete(f"result:{name}", keys.RETURNED + name)
    redis.hdel(keys.UNACKED, name)
    redis.zrem(keys.UNACKED_INDEX, name)
    redis.hdel(dead_letters.LETTERS, name)
    redis.zrem(dead_letters.INDEX, name)


def stored(redis, name, record, settles=True):
    how = StoreArguments.make(f"result:{name}", record, 60, '{"status": "SUCCESS"', name, settles=settles)
    return STORE(how.keys, how.arguments, redis)


def hold(redis, name):
    redis.hset(keys.UNACKED, name, "[]")
    redis.zadd(keys.UNACKED_INDEX, {name: 1})


def test_a_result_is_stored_and_its_message_acknowledged_in_one_step(redis, task):
    hold(redis, task)
    assert stored(redis, task, "FAILURE") == 1
    assert redis.get(f"result:{task}") == b"FAILURE"
    assert not redis.hexists(keys.UNACKED, task)
    assert redis.zscore(keys.UNACKED_INDEX, task) is None


def test_a_message_is_kept_where_more_is_to_be_done_after_its_result(redis, task):
    hold(redis, task)
    assert stored(redis, task, "FAILURE", settles=False) == 1
    assert redis.hexists(keys.UNACKED, task)


def test_the_deployments_own_backend_stores_that_way():
    assert type(app().backend) in STORES


def test_no_result_is_stored_for_a_message_that_went_back(redis, task):
    redis.set(keys.RETURNED + task, 1)
    assert stored(redis, task, "FAILURE") == -1
    assert not redis.exists(f"result:{task}")


def letter(name):
    return dead_letters.DeadLetter.make(
        id=name, task="t", queue="q", reason="poisoned", function="t", error=ValueError(), traceback="", runs=1,
        items=1, envelope="",
    )  # fmt: skip


def test_no_letter_is_kept_for_a_message_that_went_back(redis, task):
    redis.set(keys.RETURNED + task, 1)
    assert not dead_letters.bury(letter(task), delivery=task)
    assert not redis.hexists(dead_letters.LETTERS, task)
    assert dead_letters.bury(letter(task), delivery="another")
    assert redis.zscore(dead_letters.INDEX, task)


def test_the_letter_of_a_task_that_succeeds_after_all_is_taken_back(redis, task):
    dead_letters.bury(letter(task))
    dead_letters.take_back(task)
    assert not redis.hexists(dead_letters.LETTERS, task)
    assert redis.zscore(dead_letters.INDEX, task) is None


def test_a_run_that_cannot_ask_whether_it_holds_its_message_gives_it_back(redis, task, monkeypatch):
    """An outage makes the lease uncertain; that the question fails too is no failure of the task."""
    monkeypatch.setattr(keys, "UNACKED", f"result:{task}")
    monkeypatch.setattr(lease, "is_certain", lambda: False)
    redis.set(f"result:{task}", "no hash: Redis refuses")
    with pytest.raises(Reject) as rejected:
        lease.refuse_if_lost(SimpleNamespace(id=task, properties={"delivery_tag": task}))
    assert rejected.value.requeue


def test_a_delivery_that_redis_knows_nothing_of_goes_back_and_one_that_went_back_is_dropped(redis, task):
    """After a failover this process may ask another server than the one that its message came from."""
    request = SimpleNamespace(id=task, properties={"delivery_tag": task})
    lease.keep_clock().doubt()
    try:
        with pytest.raises(Reject) as refused:
            lease.refuse_if_lost(request)
        assert refused.value.requeue
        hold(redis, task)
        lease.refuse_if_lost(request)
        redis.hdel(keys.UNACKED, task)
        redis.set(keys.RETURNED + task, 1)
        with pytest.raises(lease.LeaseLost):
            lease.refuse_if_lost(request)
    finally:
        current.drop(lease.LeaseClock)
