"""The rules of the health checks: measured values in, verdicts out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st

from graft.config.redis_client import server_time
from graft.config.redis_server import RedisServer
from graft.config.settings import Settings
from graft.tasks.health import examination, measure, periodic, report_store, webhook
from graft.tasks.health.checks import judge
from graft.tasks.health.measurements import Held, Loop, Measurements, Pile, Queue, Work, Worker
from graft.tasks.health.verdicts import FAILING, HealthReport, Verdict, changes, grade, worst
from graft.tasks.leaks.findings import Finding
from graft.tasks.monitoring.exclusive import exclusive, totals
from graft.tasks.shared.limit_states import LimitState, OpenBreaker

WELL = Measurements(
    queues=(Queue("batch", readers=1, slots=2, round_trip=0.01),),
    workers=(Worker("cpu@here", 1.0, 0.0),),
    servers=(RedisServer("redis", (7, 0, 15), "noeviction", 1 << 20, 0, 1 << 30, 10, 10_000),),
    beat=1.0,
)
LIMITS = Settings(visibility_timeout=60.0)


def verdicts(found: Measurements) -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in judge(found, LIMITS)}


def test_a_healthy_deployment_is_ok():
    assert {verdict.state for verdict in judge(WELL, LIMITS)} == {"ok"}


def queue(**changed: object) -> dict[str, object]:
    return {"queues": (replace(WELL.queues[0], **changed),)}  # type: ignore[arg-type]


def server(**changed: object) -> dict[str, object]:
    return {"servers": (replace(WELL.servers[0], **changed),)}  # type: ignore[arg-type]


def test_a_worker_that_vanished_is_history_once_others_have_its_messages():
    gone = Worker("gone@there", LIMITS.visibility_timeout + 20, is_lost=True)
    verdicts = {verdict.name: verdict for verdict in judge(replace(WELL, workers=(*WELL.workers, gone)), LIMITS)}
    assert verdicts["worker gone@there"].state == "ok"
    alone = {verdict.name: verdict for verdict in judge(replace(WELL, workers=(gone,)), LIMITS)}
    assert alone["worker gone@there"].state == "failing"  # Nobody is there to sweep.


@pytest.mark.parametrize(
    ("fault", "name", "state", "remedy"),
    [
        ({"workers": ()}, "workers", "failing", "celery -A graft worker"),
        ({"workers": (*WELL.workers, Worker("gone@there", 40, is_lost=True))}, "worker gone@there", "degraded", "log"),
        ({"workers": (Worker("cpu@here", 1.0, -9.0),)}, "clock cpu@here", "degraded", "chrony"),
        ({"workers": (Worker("cpu@here", 1.0, 60.0),)}, "clock cpu@here", "failing", "chrony"),
        (
            {"workers": (*WELL.workers, Worker("idle@here", 1.0, idle="it reads no queue")), **queue(waiting=1)},
            "worker idle@here",
            "degraded",
            "queue resume",
        ),
        ({"beat": None}, "beat", "failing", "celery -A graft beat"),
        ({"beat": 61.0}, "beat", "failing", "start it again"),
        ({"beat": None, "started": 61.0}, "beat", "failing", "celery -A graft beat"),
        (queue(waiting=10_001), "depth batch", "degraded", "add workers"),
        (queue(waiting=50_001), "depth batch", "failing", "add workers"),
        (queue(waiting=1, readers=0), "depth batch", "failing", "-Q batch"),
        (queue(waiting=1, is_paused=True), "depth batch", "degraded", "resume"),
        (queue(waiting=1, oldest=301.0), "age batch", "degraded", "batch"),
        (queue(waiting=1, oldest=1501.0), "age batch", "failing", "batch"),
        (queue(round_trip=61.0), "round trip batch", "degraded", "queue of their own"),
        (queue(unanswered=61.0), "round trip batch", "failing", "restart it"),
        (queue(unanswered=61.0, busy=2), "round trip batch", "degraded", "add workers"),
        (queue(unanswered=61.0, readers=0, slots=0), "round trip batch", "failing", "start a worker"),
        ({"held": Held(3, abandoned=181.0)}, "unacknowledged", "failing", "start or restart"),
        ({"held": Held(3, longest=3700.0)}, "unacknowledged", "degraded", "inspect active"),
        ({"held": Held(3, unindexed=1)}, "unacknowledged", "degraded", "of its own"),
        ({"dead_letters": Pile(5, 1, ("1 x f: no",))}, "dead letters", "degraded", "dead-letters list"),
        ({"dead_letters": Pile(500, 101)}, "dead letters", "failing", "dead-letters list"),
        ({"quarantine": Pile(2, 2)}, "quarantine", "degraded", "quarantine list"),
        ({"work": Work(300, 100, 6, 0)}, "errors", "degraded", "dead-letters"),
        ({"work": Work(300, 100, 30, 0)}, "errors", "failing", "dead-letters"),
        ({"work": Work(300, 100, 6, 6)}, "retries", "degraded", "depend on"),
        (server(policy="allkeys-lru"), "eviction redis", "failing", "noeviction"),
        (server(evicted=3), "eviction redis", "failing", "noeviction"),
        (server(memory=90, memory_limit=100), "memory redis", "degraded", "maxmemory"),
        (server(memory=96, memory_limit=100), "memory redis", "failing", "maxmemory"),
        (server(appends=False), "persistence redis", "degraded", "appendonly"),
        (server(append_ok=False), "persistence redis", "failing", "disk"),
        (server(clients=8_001), "clients redis", "degraded", "maxclients"),
        (server(is_replica=True), "replication redis", "failing", "primary"),
        (server(replicas=(("10.0.0.2", 32 << 20),)), "replication redis", "degraded", "network"),
        (server(version=(6, 0, 9)), "version redis", "failing", "6.2"),
        ({"loops": (Loop("io@here", 0.6), Loop("cpu@here", 0.1))}, "event loop", "degraded", "to_thread"),
        ({"overlaps": 2}, "checks", "degraded", "GRAFT_HEALTH_EVERY"),
        ({"unfed": (3, 20.0)}, "feeder", "degraded", "celery -A graft worker"),
        ({"unfed": (3, 600.0)}, "feeder", "failing", "the feeder of durable batches failed"),
        ({"overdue": 20.0}, "due", "degraded", "GRAFT_DUE_AFTER=0"),
        (
            {"leaks": (Finding("w", "memory", "leaking", "grows", "restart"),)},
            "leak w memory",
            "failing",
            "re",
        ),
    ],
)
def test_each_fault_is_found_by_its_check_and_named_with_a_remedy(fault, name, state, remedy):
    found = verdicts(replace(WELL, **fault))
    assert found[name].state == state
    assert remedy in found[name].remedy
    assert found[name].detail


@pytest.mark.parametrize("silent", [None, 5000.0])
def test_beat_may_still_start_where_the_workers_have_started_only_now(silent):
    found = verdicts(replace(WELL, beat=silent, started=5.0))["beat"]
    assert (found.state, found.detail) == ("ok", "has sent nothing yet; the workers started 5 s ago")


def test_rates_of_a_handful_of_items_say_nothing():
    assert verdicts(replace(WELL, work=Work(300, 10, 10, 0)))["errors"].state == "ok"


def test_items_that_are_run_again_are_retries_and_no_errors():
    found = verdicts(replace(WELL, work=Work(300, 100, 50, 50)))
    assert (found["errors"].state, found["retries"].state) == ("ok", "failing")


BANK = OpenBreaker("bank[acme]", "open", 5, 42.0, 3.0)


def test_an_open_breaker_is_named_with_its_failure_while_anybody_asks():
    bank = LimitState("bank", "breaker after 5 failures", keys=2, waiting=7, open=(BANK,), error="ConnectionError: no")
    found = verdicts(replace(WELL, limits=(bank, LimitState("api", "10/minute", waiting=3))))
    breaker = found["breaker bank[acme]"]
    assert breaker.state == "degraded"
    assert "open: 5 failures in a row, the last 42 s ago; the last failure: ConnectionError: no" in breaker.detail
    assert "the breaker tries it by itself" in breaker.remedy
    assert (found["limits"].state, found["limits"].value) == ("ok", 10)
    forgotten = replace(bank, open=(replace(BANK, asked=3600.0),))
    assert "breaker bank[acme]" not in verdicts(replace(WELL, limits=(forgotten,)))


@given(value=st.floats(0, 1e9), limit=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_a_larger_value_is_never_better(value, limit, more):
    order = ["ok", "degraded", "failing"]
    failing = FAILING * limit
    assert order.index(grade(value + more, limit, failing)) >= order.index(grade(value, limit, failing))


@given(st.lists(st.sampled_from(["ok", "degraded", "failing"])))
def test_the_whole_is_as_bad_as_its_worst_part(states):
    assert worst(states) == ("failing" if "failing" in states else "degraded" if "degraded" in states else "ok")


def test_only_a_change_of_state_is_a_change():
    ok, bad = Verdict("depth", "batch", "ok", "1 waits"), Verdict("depth", "batch", "failing", "9 wait", remedy="x")
    assert changes([ok], [replace(ok, detail="2 wait")]) == []
    assert changes([], [ok]) == changes([ok], []) == []
    (worse,) = changes([ok], [bad])
    assert (worse.is_worse, worse.before, worse.after) == (True, "ok", "failing")
    (better,) = changes([bad], [ok])
    assert not better.is_worse
    (gone,) = changes([bad], [])
    assert gone.after == ""


def test_a_report_survives_being_written_down():
    report = HealthReport(1.0, judge(WELL, LIMITS), 0.1, "here", 3, 1)
    assert HealthReport.of(report.as_dict()) == report


def test_info_is_read_as_redis_writes_it():
    info = {
        "redis_version": "7.2.4",
        "maxmemory_policy": "volatile-lru",
        "used_memory": 5,
        "maxmemory": 10,
        "connected_clients": 3,
        "maxclients": 10,
        "aof_enabled": 1,
        "aof_last_write_status": "err",
        "role": "master",
        "master_repl_offset": 100,
        "slave0": {"ip": "10.0.0.2", "offset": 40},
    }
    found = RedisServer.read("broker", info, evicted=2)
    assert (found.version, found.policy, found.append_ok, found.evicted) == ((7, 2, 4), "volatile-lru", False, 2)
    assert found.replicas == (("10.0.0.2", 60),)


@pytest.fixture
def clean(redis):
    """No report, no history, no lock of another test."""
    keys = list(redis.scan_iter("graft:health*", count=1000))
    if keys:
        redis.delete(*keys)
    return redis


@pytest.mark.acl_role("worker")
def test_two_checks_never_overlap_and_the_second_is_counted(clean):
    with exclusive(examination.CHECK, clean) as first:
        assert first
        assert periodic.check() is None
    assert totals(examination.CHECK, clean) == (1, 1)
    assert periodic.check() is not None
    last = report_store.last(clean)
    assert last is not None
    assert {verdict.name: verdict.state for verdict in last.verdicts}["checks"] == "ok"  # There was no check before it.


@pytest.mark.acl_role("worker")
def test_a_check_that_outlived_its_lock_leaves_the_lock_of_the_next(clean):
    with exclusive(examination.CHECK, clean):
        clean.set(f"{examination.CHECK}:lock", "another's")
    assert clean.get(f"{examination.CHECK}:lock") == b"another's"


def test_the_last_report_and_the_latest_changes_are_kept(clean, monkeypatch):
    monkeypatch.setattr(report_store, "CHANGES_LENGTH", 5)
    for number in range(12):
        bad = Verdict("x", "", "failing" if number % 2 else "ok", "y")
        report_store.keep(HealthReport(float(number), (bad,)), changes([], [bad]), clean)
    last = report_store.last(clean)
    assert last is not None
    assert last.at == 11.0
    assert [at for at, _ in report_store.past_changes(clean)] == [11.0, 9.0, 7.0, 5.0, 3.0]


def test_a_message_without_a_date_ages_from_when_it_was_first_seen(redis_stack):
    # A database of its own: workers of other tests read the queues of the usual one.
    with redis_py.Redis.from_url(redis_stack.redis.url.removesuffix("/0") + "/15") as client:
        client.flushdb()
        client.lpush("heavy", '{"headers": {"id": "one"}}')
        now = server_time(client)
        measure.queues(client, client, [], now)
        (found,) = measure.queues(client, client, [], now + 50)
        assert (found.name, found.waiting, found.readers) == ("heavy", 1, 0)
        assert found.oldest == pytest.approx(50)
        client.rpop("heavy")
        client.lpush("heavy", '{"headers": {"id": "another"}}')
        (found,) = measure.queues(client, client, [], now + 60)
        assert found.oldest == 0
        client.flushdb()


def test_a_webhook_needs_a_key_and_a_scheme():
    with pytest.raises(ValueError, match="GRAFT_WEBHOOK_KEY"):
        Settings(webhook_url="https://example.org")
    with pytest.raises(ValueError, match="http"):
        Settings(webhook_url="file:///etc/passwd", webhook_key="k")


def test_a_signature_depends_on_the_time_the_body_and_the_key():
    assert webhook.signature("k", b"{}", 1).startswith("t=1,v1=")
    different = {
        webhook.signature(*each) for each in (("k", b"{}", 1), ("k", b"{}", 2), ("k", b"[]", 1), ("l", b"{}", 1))
    }
    assert len(different) == 4
