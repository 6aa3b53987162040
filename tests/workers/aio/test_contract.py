"""What Celery promises of a task holds for ``async def`` tasks, in the cpu lane (prefork) and in the io lane alike."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import chain, chord, group
from celery.exceptions import Reject, TaskRevokedError
from celery.result import AsyncResult

from graft.config.celery_app import app
from graft.tasks.monitoring import worker_registry
from tests.roles import acting_as
from tests.stack import wait_until
from tests.workers.aio import samples as tasks

WAIT = 60.0
QUEUES = {"cpu": "default", "io": "io"}


class Lane:
    """One lane of the session's stack."""

    def __init__(self, name: str, redis: Any) -> None:
        self.queue = QUEUES[name]
        self.redis = redis

    def send(self, task: Any, *args: Any, **options: Any) -> AsyncResult:
        return task.apply_async(args, queue=self.queue, **options)

    def get(self, task: Any, *args: Any, **options: Any) -> Any:
        return self.send(task, *args, **options).get(timeout=WAIT)

    def part(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        return task.s(*args, **kwargs).set(queue=self.queue)

    def told(self, key: str, count: int) -> list[str]:
        """What tasks have left under *key*, once there is so much of it."""
        wait_until(lambda: self.redis.llen(f"test:{key}") >= count, WAIT, f"{count} lines under {key}")
        return [text.decode() for text in self.redis.lrange(f"test:{key}", 0, -1)]


@pytest.fixture(params=["cpu", "io"])
def lane(request: pytest.FixtureRequest, stack: Any, redis: Any) -> Iterator[Lane]:
    yield Lane(request.param, redis)
    # No message that a test sent is left with a worker, whatever became of its task.
    wait_until(lambda: redis.hlen("graft:unacked") == 0, WAIT, "all messages to be acknowledged")


def test_a_value_comes_back(lane):
    assert lane.get(tasks.add, 1, 2) == 3


def test_an_error_comes_back_with_its_traceback(lane):
    result = lane.send(tasks.fail, "no such thing")
    with pytest.raises(ValueError, match="no such thing"):
        result.get(timeout=WAIT)
    assert result.state == "FAILURE"
    assert "samples.py" in result.traceback
    assert "in fail" in result.traceback


@pytest.mark.acl_role("worker")
def test_nothing_takes_the_place_of_a_success(lane):
    """As after a run whose message came back although its result was stored."""
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, "the first", "SUCCESS")
    lane.send(tasks.tell_it, task_id, "ran again", task_id=task_id)
    assert lane.told(task_id, 1) == ["ran again"]
    wait_until(lambda: lane.redis.hlen("graft:unacked") == 0, WAIT, "its message to be acknowledged")
    assert AsyncResult(task_id, app=app).get(timeout=WAIT) == "the first"


@pytest.mark.acl_role("worker")
def test_a_failure_gives_way_to_a_success(lane):
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, ValueError("the first"), "FAILURE")
    lane.send(tasks.tell_it, task_id, "ran again", task_id=task_id)
    wait_until(lambda: AsyncResult(task_id, app=app).state == "SUCCESS", WAIT, "the later result")
    assert AsyncResult(task_id, app=app).get(timeout=WAIT) == "ran again"


def test_a_task_knows_its_request_in_every_part_of_it(lane):
    result = lane.send(tasks.request)
    assert result.get(timeout=WAIT) == [[result.id, 0, lane.queue]] * 3


def test_a_task_retries_itself(lane):
    assert lane.get(tasks.retry, 2) == 2


def test_retries_end_in_the_error(lane):
    with pytest.raises(ConnectionError, match="run 3"):
        lane.get(tasks.retry, 9)


def test_errors_named_by_autoretry_for_are_retried(lane):
    assert lane.get(tasks.autoretry, 2) == 2


def test_a_reliable_task_obeys_its_policy(lane):
    assert lane.get(tasks.reliable, 2) == 2
    with pytest.raises(ConnectionError):
        lane.get(tasks.reliable, 9)


def test_a_task_replaces_itself(lane):
    assert lane.get(tasks.replaced, 3, 4) == 7


def test_an_ignored_message_is_gone_and_has_no_result(lane):
    result = lane.send(tasks.ignore)
    assert lane.get(tasks.add, 1, 1) == 2
    assert result.state == "PENDING"


def test_a_rejected_message_ends_in_failure(lane):
    with pytest.raises(Reject):
        lane.get(tasks.reject)


def test_no_result_is_kept_where_none_is_wanted(lane):
    result = lane.send(tasks.tell_it, "ignored", ignore_result=True)
    lane.told("ignored", 1)
    lane.redis.delete("test:ignored")
    assert result.state == "PENDING"


def test_a_link_is_called_with_the_value(lane):
    result = lane.send(tasks.add, 1, 2, link=lane.part(tasks.tell_it).clone(kwargs={"text": "linked"}))
    assert result.get(timeout=WAIT) == 3
    assert lane.told("3", 1) == ["linked"]
    lane.redis.delete("test:3")


def test_an_errback_is_called_with_the_error(lane):
    result = lane.send(tasks.fail, "oh", link_error=lane.part(tasks.errback))
    assert lane.told(result.id, 1) == ["ValueError: oh"]


def test_chains_groups_and_chords(lane):
    part = lane.part
    assert chain(part(tasks.add, 1, 2), part(tasks.add, 3), part(tasks.add, 4)).apply_async().get(timeout=WAIT) == 10
    assert group(part(tasks.add, x, x) for x in range(5)).apply_async().get(timeout=WAIT) == [0, 2, 4, 6, 8]
    assert chord([part(tasks.add, x, 1) for x in range(5)], part(tasks.total)).apply_async().get(timeout=WAIT) == 15


def test_a_chord_whose_part_fails_fails(lane):
    body = chord([lane.part(tasks.add, 1, 1), lane.part(tasks.fail, "part")], lane.part(tasks.total)).apply_async()
    with pytest.raises(Exception, match="part"):
        body.get(timeout=WAIT)


def test_a_soft_limit_is_raised_in_the_coroutine(lane):
    assert lane.get(tasks.soft, "had to stop") == "had to stop"
    with pytest.raises(SoftTimeLimitExceeded):
        lane.get(tasks.soft, "")


def test_a_hard_limit_ends_the_task(lane):
    with pytest.raises(TimeLimitExceeded):
        lane.get(tasks.hard)


def test_limits_may_come_with_the_message(lane):
    with pytest.raises(SoftTimeLimitExceeded):
        lane.get(tasks.pause, 1, 60, soft_time_limit=0.2, time_limit=60)


@pytest.mark.acl_role("operator")
def test_a_running_task_is_terminated(lane):
    result = lane.send(tasks.started, 60)
    wait_until(lambda: result.state == "STARTED", WAIT, "the task to start")
    app.control.revoke(result.id, terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    wait_until(lambda: not active(result.id), WAIT, "the task to be gone")


@pytest.mark.acl_role("operator")
def test_a_revoked_task_does_not_begin(lane):
    result = lane.send(tasks.tell_it, "revoked", countdown=1)
    app.control.revoke(result.id)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    assert not lane.redis.exists("test:revoked")


def test_an_expired_task_does_not_begin(lane):
    with pytest.raises(TaskRevokedError):
        lane.get(tasks.add, 1, 2, expires=0.1, countdown=1)


def test_a_countdown_is_waited_for(lane):
    began = time.time()
    assert lane.get(tasks.add, 1, 2, countdown=1) == 3
    assert time.time() - began >= 1


@pytest.mark.acl_role("operator")
def test_what_runs_is_shown(lane):
    result = lane.send(tasks.started, 60)
    wait_until(lambda: active(result.id), WAIT, "inspect active to show the task")
    shown = active(result.id)
    app.control.revoke(result.id, terminate=True)
    assert (shown["name"], shown["args"]) == ("aio.started", [60])
    assert shown["time_start"] > 0
    wait_until(lambda: result.state == "REVOKED", WAIT, "the task to be terminated")


@acting_as("operator")
def active(task_id: str) -> Any:
    """What the workers say of a running task; None when none runs it."""
    answers = app.control.inspect(timeout=1).active() or {}
    return next((shown for running in answers.values() for shown in running if shown["id"] == task_id), None)


@pytest.mark.parametrize(
    ("end", "calls"),
    [
        ("success", ["prerun", "before_start", "on_success", "success", "after_return SUCCESS", "postrun"]),
        ("failure", ["prerun", "before_start", "on_failure", "failure", "after_return FAILURE", "postrun"]),
        (
            "retry",
            [
                *("prerun", "before_start", "on_retry", "retry", "postrun"),
                *("prerun", "before_start", "on_success", "success", "after_return SUCCESS", "postrun"),
            ],
        ),
    ],
)
def test_handlers_and_signals_come_in_celerys_order(lane, end, calls):
    result = lane.send(tasks.noted, end)
    told = lane.told(result.id, len(calls))
    if end == "retry":  # The second run may begin while the first still notes its end.
        told, calls = sorted(told), sorted(calls)
    assert told == calls


@pytest.mark.acl_role("operator")
def test_events_tell_the_life_of_a_task(lane):
    events: dict[str, list[str]] = {}
    living = len(worker_registry.workers())
    wait_until(lambda: len(app.control.enable_events(reply=True, limit=living, timeout=5) or ()) >= living, WAIT)
    try:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": lambda event: note(events, event)})
            with receiver.consumer_context() as (listening, *_):
                drain(listening)  # It subscribes only now.
                good, bad = lane.send(tasks.add, 1, 2), lane.send(tasks.fail, "shown")

                def is_over() -> bool:
                    drain(listening)
                    return "task-succeeded" in events.get(good.id, ()) and "task-failed" in events.get(bad.id, ())

                wait_until(is_over, WAIT, "the events")
    finally:
        app.control.disable_events()
    # Celery asks whether to tell of arrivals when it starts, and no worker of ours was started with -E.
    assert events[good.id][-2:] == ["task-started", "task-succeeded"]
    assert events[bad.id][-2:] == ["task-started", "task-failed"]


def note(events: dict[str, list[str]], event: dict[str, Any]) -> None:
    events.setdefault(event.get("uuid", ""), []).append(event["type"])


def drain(connection: Any) -> None:
    try:
        connection.drain_events(timeout=0.2)
    except TimeoutError:
        pass


def test_context_variables_stay_with_their_task(lane):
    results = [lane.send(tasks.set_mark, f"mark {number}") for number in range(10)]
    assert [result.get(timeout=WAIT) for result in results] == [["nobody's", f"mark {number}"] for number in range(10)]


def test_a_task_is_a_coroutine_function_for_others(lane):
    assert lane.get(tasks.calls, 1) == [2, 3]


def test_a_task_sends_others(lane):
    ids = lane.get(tasks.delays, lane.queue)
    assert [AsyncResult(task_id, app=app).get(timeout=WAIT) for task_id in ids] == [3, 3, 3]


def test_decorated_coroutines_and_other_awaitables_are_awaited(lane):
    assert lane.get(tasks.decorated, 5) == 5
    assert lane.get(tasks.awaitable, 6) == 6


@pytest.mark.parametrize(
    "kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "BaseException"]
)
def test_a_coroutine_that_tries_to_end_everything_ends_alone(lane, kind):
    with pytest.raises(Exception, match=kind if kind != "BaseException" else "base"):
        lane.get(tasks.raises, kind)
    assert lane.get(tasks.add, 1, 1) == 2


def test_an_async_generator_is_refused_with_a_reason(lane):
    with pytest.raises(TypeError, match="async generator; a task returns one value"):
        lane.get(tasks.generator)
