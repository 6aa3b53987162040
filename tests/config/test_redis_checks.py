"""A Redis that would lose messages is refused, one that might is warned about, each with the way out."""

from __future__ import annotations

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st

from graft.config.redis_checks import ORDER, Finding, judge
from graft.config.redis_server import Facts, ask
from tests.workers.redis_server import RedisServer, Worker, wait_until

GOOD = {"redis_version": "7.0.15", "maxmemory": 100, "used_memory": 10, "role": "master", "aof_enabled": 1}
CONFIG = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
LOCAL = "redis://127.0.0.1:6379/0"


def facts(info=None, config=None, **changes):
    return Facts(**{"info": {**GOOD, **(info or {})}, "config": {**CONFIG, **(config or {})}, "skew": 0.0, **changes})


def test_a_server_as_it_should_be_has_no_findings():
    assert judge(facts(), LOCAL) == []


@pytest.mark.parametrize(
    ("found", "url", "severity", "check"),
    [
        (facts({"redis_version": "5.0.7"}), LOCAL, "refuse", "version"),
        (facts({"redis_mode": "cluster"}), LOCAL, "refuse", "mode"),
        (facts(config={"maxmemory-policy": "allkeys-lru"}), LOCAL, "refuse", "eviction"),
        (facts({"used_memory": 90}), LOCAL, "warn", "memory"),
        (facts({"maxmemory": 0}), LOCAL, "note", "maxmemory"),
        (facts({"evicted_keys": 3}), LOCAL, "warn", "evicted"),
        (facts(config={"appendonly": "no"}), LOCAL, "warn", "persistence"),
        (facts(config={"appendfsync": "no"}), LOCAL, "warn", "persistence"),
        (facts({"aof_last_write_status": "err"}), LOCAL, "alarm", "persistence"),
        (facts({"role": "slave"}), LOCAL, "refuse", "replication"),
        (facts({"connected_slaves": 1}, {"min-replicas-to-write": "0"}), LOCAL, "warn", "replicas"),
        (facts(skew=-2.0), LOCAL, "warn", "clock"),
        (facts(skew=4000.0), LOCAL, "refuse", "clock"),
        (facts(), "redis://:secret@redis.example/0", "warn", "tls"),
        (facts(), "rediss://redis.example/0", "warn", "password"),
        (facts(user="default"), "rediss://:secret@redis.example/0", "note", "acl"),
        (Facts(GOOD), LOCAL, "note", "config"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(found, url, severity, check):
    (finding,) = judge(found, url)
    assert (finding.severity, finding.check) == (severity, check)
    assert finding.message
    assert finding.remedy
    assert "secret" not in repr(finding)


def test_a_result_backend_may_forget_what_a_broker_may_not():
    evicting = facts(config={"maxmemory-policy": "allkeys-lru", "appendonly": "no"}, skew=100.0)
    assert {finding.severity for finding in judge(evicting, LOCAL, "results")} == {"warn"}


@given(
    info=st.dictionaries(st.sampled_from(sorted(GOOD)), st.none() | st.text(max_size=5)),
    skew=st.none() | st.floats(-1e6, 1e6),
)
def test_the_worst_comes_first(info, skew):
    numbers = {"maxmemory", "used_memory", "aof_enabled"}
    info = {key: value for key, value in info.items() if key not in numbers and value is not None}
    ranks = [ORDER.index(one.severity) for one in judge(facts(info, skew=skew), LOCAL)]
    assert ranks == sorted(ranks)


@pytest.mark.redis
def test_a_real_server_is_judged_by_what_it_says(tmp_path):
    with RedisServer(tmp_path) as server:
        assert {finding.check for finding in judge(ask(server.client), server.url)} == {"maxmemory"}
        server.client.config_set("maxmemory-policy", "allkeys-lru")
        assert Finding in {type(finding) for finding in judge(ask(server.client), server.url)}
        assert judge(ask(server.client), server.url)[0].severity == "refuse"
        server.client.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "&*", "+@all", "-@dangerous")
        with redis_py.Redis(port=server.port, username="narrow", password="pw") as narrow:
            found = judge(ask(narrow), server.url)
        assert {finding.severity for finding in found} == {"note", "warn"}


@pytest.mark.redis
@pytest.mark.worker
def test_a_worker_does_not_start_on_a_redis_that_evicts(tmp_path):
    with RedisServer(tmp_path) as server:
        server.client.config_set("maxmemory-policy", "allkeys-lru")
        with Worker(server) as worker:
            wait_until(lambda: not worker.is_alive(), "the worker refuses to start")
            assert worker.said("maxmemory-policy is allkeys-lru")
            assert worker.said("CONFIG SET maxmemory-policy noeviction")
