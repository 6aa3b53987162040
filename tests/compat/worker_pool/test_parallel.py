"""C on real workers, and the same in one process; C.1: both dialects on one pool."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading

import pytest

from graft.compat import worker_pool as wp
from graft.compat.worker_pool import Task, WorkerPool
from graft.config.deployment import current
from tests.compat.worker_pool import work
from tests.stack import wait_until


@pytest.fixture(params=["cluster", "local"])
def place(request, monkeypatch):
    request.getfixturevalue("stack")
    if request.param == "local":
        monkeypatch.setenv("GRAFT_MODE", "local")
        current.reread_settings()
    yield request.param
    monkeypatch.undo()
    current.reread_settings()


def run(main):
    return asyncio.run(asyncio.wait_for(main, 90))


def test_the_examples_of_the_task(place):
    async def main():
        pool = WorkerPool.new(4, 100)
        assert pool.worker_count() == 4
        assert await pool.spawn(work.nothing) is None
        assert await pool.spawn_cpu_work(work.million) == 499999500000
        doubled = await pool.spawn_parallel_batch(list(range(100)), lambda x: x * 2)
        assert (len(doubled), doubled[0], doubled[-1]) == (100, 0, 198)
        squares = await pool.spawn_chunked_parallel(list(range(50)), 10, work.square)
        assert (len(squares), squares[0], squares[-1]) == (50, 0, 2401)
        assert sum(await pool.spawn_parallel_batch(range(10_000), work.sum_to)) == 1661670000
        assert await pool.spawn_parallel_batch([], work.square) == []
        assert await pool.spawn_chunked_parallel([], 3, work.square) == []
        assert await pool.shutdown() is None
        assert await pool.shutdown() is None
        for call in (
            pool.spawn(work.nothing),
            pool.spawn_cpu_work(work.one),
            pool.spawn_parallel_batch([1], work.square),
            pool.spawn_chunked_parallel([1], 1, work.square),
        ):
            with pytest.raises(wp.PoolClosedError, match=r"^worker pool is closed$"):
                await call

    run(main())


def test_results_keep_the_order_and_the_callers_list_is_not_changed(place):
    async def main():
        async with WorkerPool(2, 3) as pool:
            items = list(range(97))
            assert await pool.spawn_parallel_batch(items, work.twice) == [2 * x for x in range(97)]
            assert await pool.spawn_chunked_parallel(items, 10, work.twice) == [2 * x for x in range(97)]
            assert await pool.spawn_chunked_parallel(items, 1000, work.twice) == [2 * x for x in range(97)]
            assert items == list(range(97))

    run(main())


def test_a_failure_is_a_task_failed_with_its_error_as_the_cause(place):
    async def main():
        async with WorkerPool(2, 10) as pool:
            with pytest.raises(wp.ParallelError.TaskFailed, match=r"^Task processing failed: boom$") as caught:
                await pool.spawn_cpu_work(work.boom)
            assert isinstance(caught.value.__cause__, ValueError)
            for call in (
                pool.spawn_parallel_batch(range(10), work.square_not_three),
                pool.spawn_chunked_parallel(range(10), 2, work.square_not_three),
            ):
                with pytest.raises(wp.TaskFailed, match="3 is refused"):
                    await call
            assert await pool.spawn_cpu_work(work.one) == 1

    run(main())


def test_bad_arguments_are_refused(place):
    async def main():
        async with WorkerPool(1, 1) as pool:
            for size in (0, -1):
                with pytest.raises(ValueError, match="chunk_size"):
                    await pool.spawn_chunked_parallel([1], size, work.square)
            for call in (pool.spawn(5), pool.spawn_cpu_work(5), pool.spawn_parallel_batch([1], 5)):
                with pytest.raises(TypeError):
                    await call

    run(main())


def test_spawning_waits_for_room_instead_of_failing(place, tmp_path):
    gate = tmp_path / "gate"

    async def main():
        async with WorkerPool(1, 1) as pool:
            await pool.spawn(functools.partial(work.hold, str(gate)))
            await asyncio.to_thread(wait_until, lambda: work.begun(str(gate)))
            await pool.spawn(work.nothing)
            third = asyncio.create_task(pool.spawn(work.nothing))
            with pytest.raises(wp.QueueFullError):
                pool.submit_task(Task(1))
            assert not third.done()
            gate.touch()
            await third
        return pool.statistics()

    statistics = run(main())
    assert (statistics["submitted"], statistics["completed"], statistics["failed"]) == (3, 3, 0)


def test_a_spawned_error_is_logged_and_counted(place):
    async def main():
        async with WorkerPool(1, 5) as pool:
            await pool.spawn(work.boom)
        return pool

    pool = run(main())
    assert pool.statistics()["failed"] == 1
    assert list(pool.get_result()) == []


def test_a_coroutine_object_runs_on_the_callers_loop(place):
    async def main():
        loops = []
        release = asyncio.Event()

        async def here():
            loops.append(asyncio.get_running_loop())
            await release.wait()

        async with WorkerPool(1, 1) as pool:
            await pool.spawn(here())
            await asyncio.to_thread(wait_until, lambda: loops)
            await pool.spawn(here())
            with pytest.raises(wp.QueueFullError):
                pool.submit_task(Task(1))
            release.set()
        assert loops == [asyncio.get_running_loop()] * 2
        closed = here()
        with pytest.raises(wp.PoolClosedError):
            await pool.spawn(closed)

    run(main())


def test_work_that_was_dropped_says_so(place, tmp_path):
    gate = tmp_path / "gate"

    async def main():
        pool = WorkerPool.new(1, 5)
        running = asyncio.create_task(pool.spawn_cpu_work(functools.partial(work.hold, str(gate))))
        await asyncio.to_thread(wait_until, lambda: work.begun(str(gate)))
        waiting = asyncio.create_task(pool.spawn_cpu_work(work.one))
        await asyncio.to_thread(wait_until, lambda: pool.statistics()["queued"])
        with pytest.raises(wp.ShutdownTimeoutError):
            await asyncio.to_thread(pool.graceful_shutdown, 0.02)
        with pytest.raises(wp.TaskCancelled, match=r"^Task was cancelled$"):
            await waiting
        gate.touch()
        if place == "cluster":
            with pytest.raises(wp.TaskCancelled):
                await running
        return pool.statistics()["abandoned"]

    assert run(main()) == 1


def test_a_cancelled_wait_takes_out_what_has_not_begun(place, tmp_path):
    gate = tmp_path / "gate"
    log = tmp_path / "log"

    async def main():
        async with WorkerPool(1, 5) as pool:
            await pool.spawn(functools.partial(work.hold, str(gate)))
            await asyncio.to_thread(wait_until, lambda: work.begun(str(gate)))
            note = functools.partial(work.note_task, Task(1, (str(log), 1)))
            waiting = asyncio.create_task(pool.spawn_cpu_work(note))
            await asyncio.to_thread(wait_until, lambda: pool.statistics()["queued"])
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.touch()

    run(main())
    assert not log.exists()


def test_a_pool_is_used_under_one_loop_after_the_other(place):
    pool = WorkerPool(2, 10)
    for _ in range(3):
        assert run(pool.spawn_cpu_work(work.one)) == 1
    pool.graceful_shutdown(30)


def test_statistics_have_the_named_figures(place):
    async def main():
        async with WorkerPool(2, 10) as pool:
            await pool.spawn_parallel_batch(range(20), work.square)
            statistics = pool.statistics()
        assert {
            "worker_count", "queue_capacity", "submitted", "completed", "failed", "abandoned", "running", "queued",
            "utilization", "average_dispatch_seconds", "batch_efficiency", "throughput",
        } <= statistics.keys()  # fmt: skip
        assert (statistics["worker_count"], statistics["queue_capacity"]) == (2, 10)
        assert statistics["submitted"] == statistics["completed"] > 0
        for share in ("utilization", "batch_efficiency"):
            assert 0 <= statistics[share] <= 1.01
        assert statistics["throughput"] > 0

    run(main())


# ---- one pool for both dialects --------------------------------------------------------------------------------------


def test_spawning_never_feeds_the_stream_and_starts_the_pool(place):
    async def main():
        pool = WorkerPool(2, 10)
        pool.submit_task(Task(1, 1))
        assert pool.state == "new"
        assert await pool.spawn_cpu_work(work.one) == 1
        assert pool.state == "running"
        await pool.spawn(work.nothing)
        pool.submit_task(Task(2, 2))
        await pool.shutdown()
        assert pool.state == "closed"
        with pytest.raises(wp.PoolClosedError):
            pool.submit_task(Task(3, 3))
        return sorted([result.task_id async for result in pool.get_result()])

    assert run(main()) == [1, 2]


def test_the_blocking_shutdown_closes_it_for_coroutines(place):
    pool = WorkerPool.new(1, 1)
    pool.advanced_shutdown()
    with pytest.raises(wp.PoolClosedError):
        run(pool.spawn(work.nothing))


def test_closures_over_mutable_values_are_sent_as_copies(stack):
    seen = []

    def work_on_a_copy():
        seen.append(1)
        return len(seen)

    async def main():
        async with WorkerPool(1, 5) as pool:
            assert await pool.spawn_cpu_work(work_on_a_copy) == 1
            lock = threading.Lock()
            assert await pool.spawn_cpu_work(lambda: lock.locked()) is False  # This one stays here.

    run(main())
    assert seen == []


def test_a_process_that_dies_for_good_is_a_join_error(stack):
    async def main():
        async with WorkerPool(1, 5) as pool:
            with pytest.raises(
                wp.JoinError, match=r"^Join error: item 0 of .*:kill was running when 3 worker processes died"
            ):
                await pool.spawn_cpu_work(work.kill)

    run(main())


def test_a_pool_that_nobody_holds_ends_its_thread(stack):
    def use():
        pool = WorkerPool(1, 5)
        pool.start()
        pool.submit_task(Task(1, 1))
        return pool._client.submission.thread

    thread = use()
    gc.collect()
    wait_until(lambda: not thread.is_alive())


@pytest.mark.parametrize("place", ["cluster", "local"])
def test_a_line_about_a_failed_task_names_the_task_the_pool_and_where_it_ran(stack, caplog, place):
    async def spawn() -> None:
        async with WorkerPool(1, 5, name=f"failing {place}", place=place) as pool:
            await pool.spawn(work.boom)

    asyncio.run(spawn())
    logs = caplog.text if place == "local" else "".join(worker.log.read_text() for worker in stack.workers)
    (line,) = [line for line in logs.splitlines() if f"spawned in pool failing {place}," in line]
    assert "tests.compat.worker_pool.work:boom" in line
    assert "slot 0: ValueError('boom')" in line
    assert f"caller {os.getpid()}" in line if place == "local" else "on worker cpu" in line
