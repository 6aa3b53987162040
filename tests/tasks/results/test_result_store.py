"""How the result of an envelope is stored."""

from __future__ import annotations

import pytest
from celery.app.task import Context

from graft.config import keys
from graft.tasks.delivery import lease
from graft.tasks.delivery.run_counter import Runs
from graft.tasks.ids import new_id
from graft.tasks.monitoring.function_stats import Ran, read
from graft.tasks.results.backend import results_backend
from graft.tasks.results.result_store import Conclusion


@pytest.mark.acl_role("worker")
def test_a_run_whose_message_went_back_stores_settles_and_forgets_nothing(redis):
    request = Context(id=new_id(), properties={"delivery_tag": new_id()}, ignore_result=False)
    tag, key, runs = request.properties["delivery_tag"], results_backend().get_key_for_task(request.id), Runs("an", 0)
    lease.hold(request, acks_late=True)
    redis.hset(keys.UNACKED, tag, "[]")
    redis.zadd(keys.UNACKED_INDEX, {tag: 1e10})
    redis.hset(runs.key, "runs", 2)

    def end():
        request.ignore_result = False
        with redis.pipeline(transaction=False) as pipe:
            Conclusion.make(request, "the report", runs.keys, Ran("shop:price", 3, 0.5)).put_on(pipe)
            return pipe.execute()

    redis.set(keys.RETURNED + tag, 1, ex=60)
    assert end() == [-1]
    assert not read("shop:price")
    assert not redis.exists(key)
    assert redis.hexists(keys.UNACKED, tag)
    assert redis.exists(runs.key)
    redis.delete(keys.RETURNED + tag)
    assert end() == [1]
    assert b"the report" in redis.get(key)
    assert redis.ttl(key) > 0
    assert read("shop:price")["shop:price"].items == 3
    assert not redis.hexists(keys.UNACKED, tag)
    assert redis.zscore(keys.UNACKED_INDEX, tag) is None
    assert not redis.exists(runs.key)
