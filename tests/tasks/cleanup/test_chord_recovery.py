"""Every call ends: what Redis lost is sent again or said to be lost, and chords are completed once or fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from celery import chord
from celery.exceptions import ChordError
from hypothesis import given
from hypothesis import strategies as st

import graft
from graft.config.celery_app import app
from graft.config.redis_client import broker
from graft.tasks.cleanup import chord_recovery
from graft.tasks.cleanup.chord_recovery import ChordState
from graft.tasks.delivery import chord_records
from graft.tasks.errors import EnvelopeLostError
from graft.tasks.ids import new_id
from graft.tasks.queues import locate
from graft.tasks.results import lost_messages, subscriber
from tests import samples
from tests.people import held, letters
from tests.stack import wait_until

WAIT = 60.0


def state(**changes):
    known = {"size": 2, "parts": 2, "claim": None, "body_state": None, "body_is_somewhere": False}
    return ChordState(**{**known, **changes})


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"body_state": "SUCCESS"}, "settled"),
        ({"body_is_somewhere": True}, "wait"),
        ({"claim": "somebody"}, "wait"),
        ({"parts": 1}, "wait"),
        ({}, "count"),
        ({"uncounted": {1: "SUCCESS"}}, "count"),
        ({"uncounted": {1: "FAILURE"}}, "count"),
        ({"uncounted": {1: None}}, "wait"),
        ({"uncounted": {1: None}, "missing": frozenset({1})}, "lost"),
        ({"uncounted": {1: None}, "missing": frozenset({1}), "is_watched": True}, "wait"),
        ({"claim": "done"}, "lost"),
        ({"size": None}, "lost"),
    ],
)
def test_a_chord_gets_the_step_that_it_lacks(changes, step):
    assert state(**changes).step() == step


@given(
    size=st.none() | st.integers(1, 5),
    parts=st.integers(0, 5),
    claim=st.sampled_from([None, "token", "done"]),
    uncounted=st.dictionaries(st.integers(0, 4), st.sampled_from([None, "STARTED", "SUCCESS", "FAILURE"])),
)
def test_a_body_that_is_somewhere_is_never_sent_again(size, parts, claim, uncounted):
    known = ChordState(size, parts, claim, None, True, uncounted)
    assert known.step() == "wait"


def test_messages_are_found_on_their_queue_and_with_their_worker(stack, redis):
    with held("heavy"):
        waiting = graft.submit(samples.square, range(250), queue="heavy", batch_size=1, in_flight=250)
        running = graft.submit(samples.sleep, [3.0])
        wait_until(lambda: redis.llen("heavy\x06\x165") == 250, what="the messages")
        wait_until(lambda: redis.hlen("graft:unacked") >= 1, what="a worker to take one")
        (taken, *_), *_ = [json.loads(record) for record in redis.hvals("graft:unacked")]
        sent = [json.loads(raw)["headers"]["id"] for raw in redis.lrange("heavy\x06\x165", 0, -1)]
        sent.append(taken["headers"]["id"])
        with broker() as queue_side:
            assert locate.missing([*sent, "nowhere"], queue_side) == {"nowhere"}
    assert waiting.collect(WAIT) == [x * x for x in range(250)]
    running.collect(WAIT)


PURGED = """
import sys, time
import graft
from graft.tasks.errors import EnvelopeLostError
from tests import samples

factor = 3
batches = [
    graft.submit(samples.pause, range(12), batch_size=1),
    graft.submit(lambda x: time.sleep(0.2) or x * factor // 3, range(12), batch_size=1),
    graft.submit(samples.pause, range(12), batch_size=1, reduce=list),
]
while batches[0].progress().done < 3:
    time.sleep(0.01)
print("running", flush=True)
sys.stdin.readline()
for batch in batches:
    try:
        print(batch.collect(90) == list(range(12)), flush=True)
    except EnvelopeLostError as error:
        print("lost", flush=True)
"""


def test_a_redis_that_comes_back_empty_leaves_nobody_waiting(fresh_stack):
    stack = fresh_stack(cpu=2, GRAFT_LOST_AFTER="2")
    with subprocess.Popen(
        [sys.executable, "-c", PURGED], env=stack.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout.readline() == "running\n"
        stack.kill_redis()
        for file in (stack.directory / "redis").rglob("*"):
            if file.is_file():
                file.unlink()
        stack.start_redis()
        told, _ = client.communicate("\n", timeout=120)
    assert told == "True\nTrue\nlost\n"  # How far a chord had come was in Redis alone.


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(subscriber.inbox()._lost, "patience", 0.5)
    monkeypatch.setattr(lost_messages, "MOMENT", 0.5)
    monkeypatch.setattr(subscriber, "LOOK_UP_EVERY", 0.2)


def test_a_purged_queue_is_refilled_by_its_caller(stack, redis, impatient):
    with held("heavy"):
        batch = graft.submit(samples.square, range(3), queue="heavy", batch_size=1)
        wait_until(lambda: redis.llen("heavy\x06\x165") == 3, what="the messages")
        redis.delete("heavy\x06\x165")
        wait_until(lambda: redis.llen("heavy\x06\x165") == 3, what="the messages again")
    assert batch.collect(WAIT) == [0, 1, 4]


def test_what_is_lost_again_and_again_is_said_to_be_lost(stack, redis, impatient):
    with held("heavy"):
        batch = graft.submit(samples.square, [3], queue="heavy")
        wait_until(lambda: redis.delete("heavy\x06\x165") == 0 and batch.done(), timeout=WAIT, what="the verdict")
    with pytest.raises(EnvelopeLostError, match="is on no queue and with no worker"):
        batch.collect(WAIT)


# ---- chords ---------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chord_recovery, "PATIENCE", 0.0)


def look_until(done):
    def look():
        chord_recovery.finish_chords()
        return done()

    wait_until(look, timeout=WAIT, what="the watchdog to act")


@pytest.mark.parametrize("point", ["before_part", "after_claim", "after_publish"])
def test_a_chord_whose_process_dies_at_the_worst_moment_is_completed_once(fresh_stack, point, tmp_path):
    stack = fresh_stack(cpu=0)
    env = {**stack.env, "TEST_FAILPOINT": point, "TEST_LEDGER": str(tmp_path / "ledger")}
    argv = [sys.executable, "-m", "celery", "-A", "tests.failpoints", "worker", "-c", "2", "-l", "WARNING"]
    stack.guard.start(argv, env | stack.env_of("worker"), log=stack.directory / "failing.log")
    code = "from tests.failpoints import run_chord; run_chord()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=150)
    assert done.stdout == "6\n", done.stderr
    lines = (tmp_path / "ledger").read_text().split()
    assert lines.count("died") == 1
    assert lines.count("body") == 1


@pytest.mark.acl_role("worker")
def test_a_chord_that_lost_a_part_fails_with_a_letter(stack, redis, quick):
    with held("heavy"):
        part = app.signature("process_item", args=({"id": 1, "type": "x", "data": {}},), queue="heavy")
        body = app.signature("graft.maintenance.prune_dead_letters", ignore_result=False, immutable=True)
        result = chord([part, part.clone()], body).apply_async()
        wait_until(lambda: redis.llen("heavy\x06\x165") == 2, what="the parts")
        redis.delete("heavy\x06\x165")
        look_until(lambda: result.state == "FAILURE")
    with pytest.raises(ChordError, match="is lost"):
        result.get(timeout=WAIT)
    assert result.id in {letter.id for letter in letters() if letter.reason == "lost"}
    assert not redis.exists(chord_records.CHORD + result.parent.id)
    result.forget()


@pytest.mark.acl_role("worker")
def test_a_record_that_was_not_written_here_is_dropped(redis):
    forged = new_id()
    redis.hset(chord_records.CHORD + forged, mapping={"body": "forged", "part:0": "some"})
    with broker() as queue_side:
        assert chord_recovery.finish(forged, queue_side) == "settled"
    assert not redis.exists(chord_records.CHORD + forged)


@pytest.mark.acl_role("worker")
def test_the_record_of_a_finished_chord_is_dropped(stack, redis, quick):
    batch = graft.submit(samples.square, range(10), batch_size=2, reduce=samples.total)
    assert batch.collect(WAIT) == 285
    assert redis.exists(chord_records.CHORD + batch.id)
    look_until(lambda: not redis.exists(chord_records.CHORD + batch.id))
