"""What has become of a call is told apart: queued, running, ended, expired, lost, dead, and never heard of."""

from __future__ import annotations

from uuid import uuid4

import pytest

from graft.config.redis_client import broker, shared
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.queues import locate
from graft.tasks.queues.locate import Location
from graft.tasks.results import call_records, call_status
from graft.tasks.results.call_records import CallRecord
from graft.tasks.results.call_status import Traces
from graft.tasks.running import call_task
from tests import samples
from tests.roles import acting_as
from tests.stack import wait_until

NOW, TTL = 10_000.0, 100.0
NEW, OLD = CallRecord(created=NOW - 1), CallRecord(created=NOW - 200)


@pytest.mark.parametrize(
    ("traces", "status"),
    [
        (Traces(), "unknown"),
        (Traces(location=Location("queued", "batch"), record=NEW), "queued"),
        (Traces(location=Location("held")), "running"),
        (Traces(location=Location("held", eta=NOW + 60)), "scheduled"),
        (Traces(location=Location("queued", "batch", eta=NOW + 60)), "scheduled"),
        (Traces(location=Location("held", eta=NOW - 60)), "running"),
        (Traces(state="STARTED", location=Location("held")), "running"),
        (Traces(state="SUCCESS", location=Location("held")), "succeeded"),
        (Traces(state="FAILURE"), "failed"),
        (Traces(state="REVOKED"), "revoked"),
        (Traces(state="FAILURE", is_buried=True), "dead"),
        (Traces(state="SUCCESS", is_buried=True), "succeeded"),
        (Traces(record=CallRecord(created=NOW - 5, completed=NOW - 1)), "expired"),
        (Traces(record=NEW), "lost"),
        (Traces(record=OLD), "expired"),
        (Traces(record=CallRecord(created=NOW - 200, notes_end=True)), "lost"),
        (Traces(state="STARTED"), "lost"),
        (Traces(is_searched=False), "queued"),
        (Traces(is_searched=False, state="STARTED"), "running"),
    ],
)
def test_the_traces_of_a_call_show_its_status(traces, status):
    assert traces.status(NOW, TTL) == status


def send(func, *args, priority=5):
    task_id = str(uuid4())
    call_records.submitted(shared(), task_id, 0.0, notes_end=True)
    how = {"owner": "test", "retry_limit": 0, "retry_wait": 0.0}
    call_task.call.apply_async(
        [call_task.seal(func, args, {})], how, task_id=task_id, queue="default", priority=priority
    )
    return task_id


def comes_to(task_id, wanted):
    wait_until(lambda: call_status.status_of(task_id) == wanted, 60, f"{wanted}, not {call_status.status_of(task_id)}")


def test_a_call_is_followed_from_its_queue_to_the_end_of_its_answer(stack):
    assert call_status.status_of(str(uuid4())) == "unknown"
    running = [send(samples.sleep, 3) for _ in range(3)]
    wait_until(
        lambda: sorted(map(call_status.status_of, running)) == ["queued", "running", "running"],
        60,
        "two of three to run",
    )
    for task_id in running:
        comes_to(task_id, "succeeded")
    shared().delete(f"{call_status.RESULT}{running[0]}")
    assert call_status.status_of(running[0]) == "expired"
    assert call_records.read(shared(), running[0]).completed is not None


def test_an_error_leaves_a_letter_and_a_message_that_is_gone_is_lost(stack):
    dead = send(samples.raise_value_error, 1)
    comes_to(dead, "dead")
    with acting_as("admin"):
        assert all(dead_letters.remove(letter) for letter in dead_letters.read([dead]))
    comes_to(dead, "failed")  # Its letter was written before its result.
    lost = str(uuid4())
    call_records.submitted(shared(), lost, 0.0, notes_end=True)
    assert call_status.status_of(lost) == "lost"


def test_where_tells_the_queue_from_the_worker(redis):
    with broker() as queue_side:
        due = b'{"headers": {"eta": "2030-01-01T00:00:00+00:00"}, "properties": {"correlation_id": "waits"}}'
        redis.lpush("low", due)
        redis.hset("graft:unacked", "tag", b'[{"properties": {"correlation_id": "held"}}, "", "low"]')
        try:
            assert locate.where(["waits", "held", "gone"], queue_side) == {"waits": "queued", "held": "held"}
            found = locate.find(["waits"], queue_side)
            assert found == {"waits": Location("queued", "low", 0, 1893456000.0)}
            assert locate.missing(["waits", "held", "gone"], queue_side) == {"gone"}
        finally:
            redis.delete("low")
            redis.hdel("graft:unacked", "tag")
