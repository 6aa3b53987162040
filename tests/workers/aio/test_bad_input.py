"""What nobody should write into a coroutine costs its own task, is told, and leaves the others alone."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from graft.config.celery_app import app
from graft.tasks.monitoring import worker_registry
from graft.tasks.submit import submit
from tests.roles import acting_as
from tests.stack import wait_until
from tests.workers.aio import samples as tasks

WAIT = 60.0


@pytest.fixture
def io(stack: Any) -> Any:
    """The session's worker of the io lane; at the end its loop still runs tasks."""
    (worker,) = [worker for worker in stack.workers if worker.lane == "io"]
    yield worker
    assert send(tasks.add, 1, 2).get(timeout=WAIT) == 3


def send(task: Any, *args: Any, **options: Any) -> Any:
    return task.apply_async(args, queue="io", **options)


@acting_as("operator")
def pool_of(worker: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def ask() -> bool:
        answers.update(app.control.inspect([worker.name], timeout=2).stats() or {})
        return worker.name in answers

    wait_until(ask, WAIT, f"{worker.name} to answer")
    return dict(answers[worker.name]["pool"])


def test_a_coroutine_that_refuses_to_end_is_closed_and_told(io):
    neighbours = [send(tasks.pause, number, 3.0) for number in range(5)]
    with pytest.raises(TimeLimitExceeded):
        send(tasks.stubborn).get(timeout=WAIT)
    assert [neighbour.get(timeout=WAIT) for neighbour in neighbours] == list(range(5))
    log = io.log.read_text()
    assert "aio.bad.stubborn" in log
    assert "ignored its cancellation (hard limit)" in log
    wait_until(lambda: pool_of(io)["running"] == 0, WAIT, "its place to be free")


def test_a_task_that_blocks_the_loop_is_named_with_its_place_in_the_code(io):
    result = send(tasks.blocks, 1.5)
    wait_until(lambda: pool_of(io)["blocked-by"] == f"aio.bad.blocks[{result.id}]", WAIT, "the blocker's name")
    assert result.get(timeout=WAIT) == "blocked"
    log = io.log.read_text()
    assert f"aio.bad.blocks[{result.id}] has blocked the event loop for" in log
    assert "time.sleep(seconds)" in log
    # The worker's heartbeat tells everybody.
    wait_until(lambda: lag_of(io) > 0.5, WAIT, "the heartbeat to tell")


def test_a_task_that_computes_for_ever_is_ended_at_its_hard_limit(io):
    with pytest.raises(TimeLimitExceeded):
        send(tasks.spins).get(timeout=WAIT)


def lag_of(worker: Any) -> float:
    return next(beat.lag for beat in worker_registry.workers() if beat.name == worker.name)


def test_a_child_that_exits_ends_neither_the_loop_nor_the_worker(io):
    assert send(tasks.child_exits).get(timeout=WAIT) == "SystemExit"
    assert "tried to end the worker (SystemExit(4)); the event loop goes on" in io.log.read_text()


def test_what_a_task_leaves_running_is_told_and_counted(io):
    before = pool_of(io)["strays"]
    assert send(tasks.stray).get(timeout=WAIT) == "left it"
    wait_until(lambda: pool_of(io)["strays"] == before + 1, WAIT, "the stray to be counted")
    assert "left 1 asyncio tasks running" in io.log.read_text()


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (tasks.closes_the_loop, "Cannot close a running event loop"),
        (tasks.runs_a_loop, "cannot be called from a running event loop"),
        (tasks.cancels_itself, "ended in CancelledError"),
        (tasks.awaits_itself, "await"),
        (tasks.waits_for_a_result, "Never call result.get"),
        (tasks.awaits_a_batch, "a task must not wait for a batch"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_would_harm_the_loop_is_an_error_of_its_task(io, task, error):
    with pytest.raises(Exception, match=error):
        send(task).get(timeout=WAIT)


def test_the_loop_outlives_a_stop_and_another_policy(io):
    assert send(tasks.stops_the_loop).get(timeout=WAIT) == "went on"
    assert send(tasks.changes_the_policy).get(timeout=WAIT) == "changed"


def test_a_thousand_tasks_that_fail_at_once_fail_each_for_itself(io):
    failing = [send(tasks.fail, f"number {number}") for number in range(1000)]
    for number, result in enumerate(failing):
        with pytest.raises(ValueError, match=f"number {number}$"):
            result.get(timeout=WAIT)


@pytest.mark.parametrize("known", ["now", "early"])
def test_a_coroutine_that_cancels_every_task_but_itself_reaches_only_its_own(io, known):
    strangers = [send(tasks.pause, number, 1.0) for number in range(20)]
    harmful = send(tasks.cancels_the_others, 0, known)
    assert harmful.get(timeout=WAIT) >= 1  # What an earlier task has left behind is anybody's.
    assert [stranger.get(timeout=WAIT) for stranger in strangers] == list(range(20))


@pytest.mark.parametrize("queue", ["io", "default"], ids=["io lane", "pool process"])
def test_an_item_that_cancels_every_task_but_itself_reaches_only_its_own(io, queue):
    batch = submit(tasks.cancel_the_others_if_first, range(8), batch_size=8, concurrency=8, queue=queue)
    assert batch.collect(timeout=WAIT) == [1, *range(1, 8)]


def test_a_coroutine_that_never_ends_ends_at_its_limit(io):
    with pytest.raises(SoftTimeLimitExceeded):
        send(tasks.never_ends).get(timeout=WAIT)


def test_items_of_a_batch_that_misbehave_fail_each_for_itself(io):
    errors = {
        "SystemExit": "ProcessExitError",
        "KeyboardInterrupt": "ProcessExitError",
        "GeneratorExit": "ProcessExitError",
        "BaseException": "BaseException",
        "CancelledError": "CancelledError",
        "cancels itself": "CancelledError",
        "awaits its batch": "RuntimeError",
        "fine": "NoneType",
        "stops the loop": "NoneType",
        "leaves a task": "NoneType",
    }
    items = [*errors, *["fine"] * 30]
    batch = submit(tasks.misbehaves, items, batch_size=len(items), concurrency=20)
    outcomes = sorted(batch.as_completed(timeout=WAIT), key=lambda outcome: outcome.index)
    assert {items[outcome.index]: type(outcome.error).__name__ for outcome in outcomes[:10]} == errors
    assert [outcome.value for outcome in outcomes[10:]] == ["fine"] * 30


def test_plain_functions_run_beside_the_loop(io):
    pid, loop_thread = send(tasks.where).get(timeout=WAIT)
    slow = [send(tasks.plain, 1.0) for _ in range(4)]
    assert send(tasks.add, 1, 2).get(timeout=WAIT) == 3
    for result in slow:
        its_pid, thread = result.get(timeout=WAIT)
        assert its_pid == pid
        assert thread != loop_thread


def test_a_plain_function_over_its_limit_is_answered_for(io):
    with pytest.raises(TimeLimitExceeded):
        send(tasks.plain_over_its_limit, 2.0).get(timeout=WAIT)
    assert "its thread cannot be stopped and stays busy; send plain functions to the cpu lane" in io.log.read_text()
