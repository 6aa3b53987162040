"""A pool's tasks are items like any other: dead letters, progress, cancelling and figures see them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft.compat.worker_pool import PriorityWorkerPool, ShutdownTimeoutError, Task, WorkerPool
from graft.tasks.errors import CancelledBatchError, PoisonedError
from graft.tasks.monitoring import function_stats
from graft.tasks.sending import progress
from tests.compat.worker_pool import work
from tests.stack import wait_until

pytestmark = pytest.mark.acl_role("admin")
WAIT = 60.0


def graft(stack, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "graft", *arguments], env=stack.env, capture_output=True, text=True,
        timeout=WAIT, check=False,
    )  # fmt: skip


def kill_unless(path: str) -> str:
    if not Path(path).exists():
        work.kill()
    return "spared"


@pytest.mark.parametrize("kind", [WorkerPool, PriorityWorkerPool])
def test_a_task_that_kills_its_processes_is_a_dead_letter_that_can_be_replayed(stack, redis, tmp_path, kind):
    gate = tmp_path / "gate"
    with kind(2, 20) as pool:
        pool.submit_task(Task("killer", functools.partial(kill_unless, str(gate))))
        for number in range(5):
            pool.submit_task(Task(number, number))
        results = {result.task_id: result for result in (pool.get_result().get(100) for _ in range(6))}
    assert isinstance(results["killer"].error, PoisonedError)
    assert [results[number].output for number in range(5)] == list(range(5))
    letter = str(results["killer"].error).rpartition(" ")[2]
    assert letter in graft(stack, "dead-letters", "list", "--json").stdout
    assert "kill_unless" in graft(stack, "dead-letters", "show", letter).stdout
    gate.touch()
    replayed = graft(stack, "dead-letters", "replay", letter, "--yes")
    assert replayed.returncode == 0, replayed.stderr
    key = f"celery-task-meta-{letter.partition(':')[0]}"
    wait_until(lambda: json.loads(redis.get(key) or "{}").get("status") == "SUCCESS", WAIT)
    assert letter not in graft(stack, "dead-letters", "list", "--json").stdout


def test_a_burst_of_tasks_is_a_batch_that_is_seen_and_cancelled(stack, redis, tmp_path):
    gate = tmp_path / "gate"
    pool = WorkerPool(2, 200)
    pool.start()
    try:
        for number in range(100):
            pool.submit_task(Task(number, functools.partial(work.hold, str(gate))))
        wait_until(lambda: [note for note in progress.running() if note.function == "WorkerPool"], WAIT)
        (note,) = [note for note in progress.running() if note.function == "WorkerPool"]
        assert (note.total, note.done, note.queue) == (100, 0, "batch")
        assert note.id[-6:] in graft(stack, "batch", "list").stdout
        cancelled = graft(stack, "batch", "cancel", note.id, "--yes")
        assert cancelled.returncode == 0, cancelled.stderr
        gate.touch()
        results = [pool.get_result().get(WAIT) for _ in range(100)]
        refused = [result for result in results if isinstance(result.error, CancelledBatchError)]
        assert len(refused) >= 90
        pool.submit_task(Task("after", 1))  # The pool goes on, with another batch.
        assert pool.get_result().get(WAIT).output == 1
    finally:
        gate.touch()
        pool.graceful_shutdown(30)


def test_tasks_are_counted_under_their_own_callable(stack):
    def counted():
        found = function_stats.read(f"{work.__name__}:twice").get(f"{work.__name__}:twice")
        return (found.items, found.errors) if found else (0, 0)

    before = counted()[0]
    with WorkerPool(2, 50) as pool:
        for number in range(30):
            pool.submit_task(Task(number, functools.partial(work.twice, number)))
    assert sorted(result.output for result in pool.get_result()) == [2 * number for number in range(30)]
    assert counted()[0] - before == 30


def test_a_slot_comes_free_though_redis_has_forgotten_the_script(stack, redis, tmp_path):
    gate = tmp_path / "gate"
    with WorkerPool(1, 5) as pool:
        pool.submit_task(Task("held", functools.partial(work.hold, str(gate))))
        wait_until(lambda: pool.statistics()["running"] == 1, WAIT)
        redis.script_flush()
        gate.touch()
        assert pool.get_result().get(WAIT).task_id == "held"
        wait_until(lambda: pool.statistics()["running"] == 0, WAIT)
        pool.submit_task(Task("next", 1))
        assert pool.get_result().get(WAIT).output == 1
    assert pool.metrics().tasks_processed == 2


def test_results_that_were_on_their_way_when_time_ran_out_are_delivered(stack, tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    monkeypatch.setattr("graft.tasks.results.subscriber.Inbox._deliver", lambda *_: None)  # They come late.
    pool = WorkerPool(1, 5)
    pool.start()
    pool.submit_task(Task("ended", 1))
    pool.submit_task(Task("held", functools.partial(work.hold, str(gate))))
    wait_until(lambda: pool.metrics().tasks_processed == 1, WAIT)
    monkeypatch.undo()
    with pytest.raises(ShutdownTimeoutError):
        pool.graceful_shutdown(0.0)
    gate.touch()
    assert [result.task_id for result in pool.get_result()] == ["ended"]


def test_a_task_that_takes_long_does_not_hold_up_those_that_left_with_it(stack, tmp_path):
    with WorkerPool(2, 50) as pool:
        for _ in range(40):
            pool.submit_task(Task("quick", functools.partial(time.sleep, 0.0)))
        for _ in range(40):
            pool.get_result().get(WAIT)
        for number in range(20):
            pool.submit_task(Task(number, functools.partial(time.sleep, 3.0 if number == 0 else 0.0)))
        began = time.monotonic()
        found = [pool.get_result().get(WAIT).task_id for _ in range(19)]
        assert 0 not in found
        assert time.monotonic() - began < 3.0
