"""What a worker of ours has beside Celery's: heartbeats, exact sizes, one loop, urgent work first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import graft
from graft.compat import worker_admin
from graft.config.celery_app import app
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import worker_registry
from tests import samples
from tests.roles import acting_as
from tests.stack import TESTED_POOL, run_python, wait_until

WAIT = 60.0


@acting_as("operator")
def stats_of(name: str) -> dict[str, Any]:
    """What the worker says of itself; asked again until it answers."""
    answers: list[dict[str, Any]] = []

    def ask() -> bool:
        answers.append(app.control.inspect([name], timeout=2).stats() or {})
        return name in answers[-1]

    wait_until(ask, what=f"{name} to answer")
    return dict(answers[-1][name])


@acting_as("operator")
def resize(name: str, size: int) -> dict[str, Any]:
    """Ask the worker for another size until it answers: it hears nothing before it has subscribed."""
    replies: list[dict[str, Any]] = []

    def ask() -> bool:
        arguments = {"size": size}
        replies.extend(
            app.control.broadcast(
                "graft_resize", arguments=arguments, destination=[name], reply=True, limit=1, timeout=2
            )
        )
        return bool(replies)

    wait_until(ask, what=f"{name} to answer")
    return dict(replies[0][name])


def processes_of(name: str) -> int:
    """Processes that the worker's pool lists."""
    return len(stats_of(name)["pool"]["processes"])


def test_a_worker_says_what_it_is_and_takes_its_leave(stack):
    with stack.another_worker("cpu", 3) as worker:
        (beat,) = [beat for beat in worker_registry.workers() if beat.name == worker.name]
        assert (beat.pid, beat.pool, beat.processes) == (
            worker.pid,
            "prefork" if TESTED_POOL == "prefork" else "direct_pool",
            3,
        )
        assert "batch" in beat.queues
        assert beat.memory > 10 << 20
    assert worker.name not in {beat.name for beat in worker_registry.workers()}


def test_a_pool_is_brought_to_an_exact_size_up_and_down(stack):
    with stack.another_worker("cpu", 2) as worker:
        for size in (4, 4, 1, 3):
            assert resize(worker.name, size) == {"processes": size, "prefetch": size}
            wait_until(lambda wanted=size: processes_of(worker.name) == wanted, what=f"{size} processes")
            assert stats_of(worker.name)["prefetch_count"] == size


@pytest.mark.acl_role("operator")
def test_sizes_asked_for_in_quick_succession_do_not_add_up(stack):
    with stack.another_worker("cpu", 1) as worker:
        stats_of(worker.name)  # It answers, so it hears what follows.
        for size in (5, 5, 2, 4):
            app.control.broadcast("graft_resize", arguments={"size": size}, destination=[worker.name])
        wait_until(lambda: processes_of(worker.name) == 4, what="the last size")
        graft.submit(samples.pause, range(20), batch_size=1).collect(WAIT)
        assert processes_of(worker.name) == 4


RESIZE_BESIDE_A_WAITING_MESSAGE = """
import os, time
import graft
from graft.config.celery_app import app
from graft.tasks.cleanup.periodic import prune_dead_letters
from tests.stack import wait_until

def held(_):
    time.sleep(0.3)
    return os.getpid()

def prefetch():
    return [stats["prefetch_count"] for stats in (app.control.inspect(timeout=1).stats() or {}).values()]

prune_dead_letters.apply_async(queue="batch", countdown=600)
wait_until(lambda: prefetch() == [3])
app.control.broadcast("graft_resize", arguments={"size": 3}, reply=True, timeout=1)
wait_until(lambda: prefetch() == [4])
print(len(set(graft.submit(held, range(12), batch_size=1).collect(60))))
"""


@pytest.mark.acl_role("operator")
def test_a_message_that_waits_for_its_time_takes_no_place_from_a_resized_pool(fresh_stack):
    done = run_python(fresh_stack(cpu=2), RESIZE_BESIDE_A_WAITING_MESSAGE, env={"GRAFT_DUE_AFTER": "0"})
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_size_that_cannot_be_is_refused(stack):
    with stack.another_worker("cpu", 1) as worker:
        assert "size=0 must be from 1 to 1024" in resize(worker.name, 0)["error"]


@pytest.mark.parametrize(
    ("worker", "group", "is_in"),
    [
        ("cpu@host", "cpu", True), ("cpu1@host", "cpu", True), ("cpu12@host-3", "cpu", True),
        ("cpu1@host", "cpu1", True), ("cpu12@host", "cpu1", False), ("gpu@host", "cpu", False),
        ("cpu@host", "cpu1", False), ("cpu@host", "cpu@host", False),
    ],
)  # fmt: skip
def test_a_group_is_the_name_before_the_host_with_or_without_its_number(worker, group, is_in):
    assert worker_admin.is_in_group(worker, group) is is_in


def test_resizing_a_group_that_does_not_exist_says_how_to_start_one(stack):
    try:
        worker_admin.resize_workers("nobody", 2)
    except TaskQueueError as error:
        told = str(error)
    assert "no worker named nobody@… is alive; start one with: celery -A graft worker -n nobody@%h" in told


def test_urgent_work_overtakes_what_waits(stack, tmp_path):
    ledger = str(tmp_path / "order")
    blockers = graft.submit(samples.pause, range(6), batch_size=1)
    wait_until(lambda: blockers.progress().sent == 6, what="the workers to be busy")
    low = graft.submit(samples.note, [(ledger, "low")] * 10, batch_size=1, priority=-3, in_flight=10)
    wait_until(lambda: low.progress().sent == 10, what="the low ones to wait")
    high = graft.submit(samples.note, [(ledger, "high")] * 3, batch_size=1, priority=5)
    for batch in (blockers, low, high):
        batch.collect(WAIT)
    order = Path(ledger).read_text().split()
    # What the two pool processes have been given already is not taken back.
    assert order.index("high") <= 4
    assert sorted(order[-5:]) == ["low"] * 5


def test_items_of_one_process_share_one_event_loop(stack):
    loops = graft.submit(samples.async_loop_id, range(10), batch_size=1).collect(WAIT)
    assert len(set(loops)) == 1


def test_a_task_that_waits_for_a_batch_is_told_instead_of_blocking(stack):
    try:
        graft.submit(samples.wait_for_a_batch, [1]).collect(WAIT)
    except RuntimeError as error:
        told = str(error)
    assert "a task must not wait for a batch" in told


def test_an_old_call_inside_a_task_runs_in_place(stack):
    here, there = graft.submit(samples.optimize_inside, [3]).collect(WAIT)[0]
    assert here == there


def test_a_worker_finds_the_facades_under_the_old_names(stack):
    assert graft.submit(samples.import_old_name, ["libs.async_worker_optimization"]).collect(WAIT) == [
        "graft.compat.async_worker_optimization"
    ]


def test_a_thousand_coroutines_run_at_once_where_they_may(stack):
    def hundreds() -> graft.Batch:
        return graft.submit(samples.async_pause, range(500), batch_size=100, concurrency=100)

    async def both() -> list[list[int]]:
        return await asyncio.gather(hundreds(), hundreds())

    assert asyncio.run(both()) == [list(range(500))] * 2
