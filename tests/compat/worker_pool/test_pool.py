"""B.2 on real workers, and the same in one process (GRAFT_MODE=local)."""

from __future__ import annotations

import asyncio
import queue
import threading

import pytest

from graft.compat import worker_pool as wp
from graft.compat.call_report import calls
from graft.compat.worker_pool import Result, Task, TaskProcessor, WorkerPool
from graft.config.deployment import current
from graft.tasks.errors import CancelledBatchError, PoisonedError
from tests.compat.worker_pool import work
from tests.stack import wait_until


@pytest.fixture(params=["cluster", "local"])
def pools(request, monkeypatch):
    """Makes pools, and shuts them down."""
    request.getfixturevalue("stack")
    if request.param == "local":
        monkeypatch.setenv("GRAFT_MODE", "local")
        current.reread_settings()
    made = []

    def make(kind=WorkerPool, *args, **kwargs):
        made.append(kind(*args, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        try:
            pool.graceful_shutdown(20)
        except wp.ShutdownTimeoutError:
            pass
    monkeypatch.undo()
    current.reread_settings()


@pytest.fixture
def gate(tmp_path):
    path = tmp_path / "gate"
    yield path
    path.touch()


def held(pool, gate, number, task_id=0):
    """Submit *number* tasks that hold, and wait until they have begun."""
    before = work.begun(str(gate))
    for _ in range(number):
        pool.submit_task(Task(task_id, partial_hold(gate)))
    wait_until(lambda: work.begun(str(gate)) == before + number)


def partial_hold(gate):
    import functools

    return functools.partial(work.hold, str(gate))


def test_basic_functionality(pools):
    pool = pools(WorkerPool, 2, 10)
    pool.start()
    pool.start()
    for number in range(5):
        assert pool.submit_task(Task(number, number * 10)) is None
    results = [pool.get_result().get(30) for _ in range(5)]
    assert {result.task_id: result.output for result in results} == {n: n * 10 for n in range(5)}
    assert all(result.error is None and result.duration >= 0 for result in results)
    assert all(0 <= result.worker_id < 2 and result.worker for result in results)
    assert pool.get_result() is pool.get_result()
    assert pool.graceful_shutdown(30) is None
    assert pool.metrics().tasks_processed == 5


def test_callable_data_is_called_and_its_error_is_the_result(pools):
    pool = pools(WorkerPool, 2, 10)
    pool.start()
    pool.submit_task(Task(1, work.one))
    pool.submit_task(Task(2, work.boom))
    pool.submit_task(Task(3, work.async_one))
    found = {result.task_id: result for result in (pool.get_result().get(30) for _ in range(3))}
    assert found[1].output == found[3].output == 1
    assert isinstance(found[2].error, ValueError)
    assert str(found[2].error) == "boom"
    metrics = pool.metrics()
    assert (metrics.tasks_processed, metrics.error_count) == (3, 1)
    assert metrics.avg_latency == pytest.approx(metrics.total_duration / 3)
    assert metrics.throughput > 0


@pytest.mark.parametrize("processor", [work.double_or_fail, TaskProcessor(work.double_or_fail)])
def test_a_processor_gets_every_task(pools, processor):
    pool = pools(WorkerPool, 2, 10, processor=processor)
    with pool:
        pool.submit_task(Task(1, 21))
        pool.submit_task(Task(2, -1))
    found = {result.task_id: result for result in pool.get_result()}
    assert found[1].output == 42
    assert str(found[2].error) == "negative: -1"


def test_a_result_from_the_processor_is_taken_over(pools):
    with pools(WorkerPool, 1, 10, processor=work.whole_result) as pool:
        pool.submit_task(Task(4, "x"))
    (result,) = pool.get_result()
    assert (result.task_id, result.output, result.worker_id) == (4, "made of x", 0)
    assert result.duration is not None


def test_the_first_runs_the_second_waits_and_the_third_is_refused(pools, gate):
    pool = pools(WorkerPool, 1, 1)
    pool.start()
    held(pool, gate, 1)
    pool.submit_task(Task(2, work.one))
    with pytest.raises(wp.QueueFullError, match=r"^task queue is full$"):
        pool.submit_task(Task(3, work.one))
    # For a moment what has just been written counts as unwritten too.
    wait_until(lambda: [pool.statistics()[name] for name in ("running", "queued")] == [1, 1])
    gate.touch()
    pool.graceful_shutdown(30)
    assert len(list(pool.get_result())) == 2


def test_an_idle_worker_needs_no_place_in_the_queue(pools, gate):
    pool = pools(WorkerPool, 1, 1)
    pool.start()
    pool.submit_task(Task(1, partial_hold(gate)))
    pool.submit_task(Task(2, work.one))
    with pytest.raises(wp.QueueFullError):
        pool.submit_task(Task(3, work.one))


def test_without_a_queue_tasks_are_accepted_only_while_a_worker_is_idle(pools, gate):
    pool = pools(WorkerPool, 1, 0)
    with pytest.raises(wp.QueueFullError):
        pool.submit_task(Task(0, work.one))
    pool.start()
    held(pool, gate, 1)
    with pytest.raises(wp.QueueFullError):
        pool.submit_task(Task(1, work.one))
    gate.touch()
    pool.get_result().get(30)
    pool.submit_task_with_timeout(Task(2, work.one), 30)
    assert pool.get_result().get(30).task_id == 2


def test_tasks_are_taken_before_the_start_up_to_the_size_of_the_queue(pools):
    pool = pools(WorkerPool, 2, 3)
    for number in range(3):
        pool.submit_task(Task(number, number))
    with pytest.raises(wp.QueueFullError):
        pool.submit_task(Task(3, 3))
    assert pool.state == "new"
    pool.start()
    assert sorted(pool.get_result().get(30).task_id for _ in range(3)) == [0, 1, 2]


def test_submitting_with_a_timeout_waits_for_room(pools, gate):
    pool = pools(WorkerPool, 1, 1)
    pool.start()
    held(pool, gate, 1)
    pool.submit_task_with_timeout(Task(1, work.one), 0)
    for timeout in (0, 0.05):
        with pytest.raises(wp.SubmitTimeoutError, match=r"^submit timeout$"):
            pool.submit_task_with_timeout(Task(2, work.one), timeout)
    opener = threading.Timer(0.05, gate.touch)
    opener.start()
    pool.submit_task_with_timeout(Task(3, work.one), 30)
    opener.join()
    assert sorted(pool.get_result().get(30).task_id for _ in range(3)) == [0, 1, 3]


def test_a_shutdown_finishes_what_is_queued_and_running(pools, gate):
    pool = pools(WorkerPool, 2, 10)
    pool.start()
    held(pool, gate, 2)
    for number in range(1, 6):
        pool.submit_task(Task(number, work.one))
    opener = threading.Timer(0.05, gate.touch)
    opener.start()
    assert pool.graceful_shutdown(30) is None
    opener.join()
    assert sorted(result.task_id for result in pool.get_result()) == [0, 0, 1, 2, 3, 4, 5]
    assert pool.graceful_shutdown(0) is None
    assert pool.advanced_shutdown() is None
    assert pool.state == "closed"
    for submit in (pool.submit_task, lambda task: pool.submit_task_with_timeout(task, 0)):
        with pytest.raises(wp.PoolClosedError, match=r"^worker pool is closed$"):
            submit(Task(9))
    with pytest.raises(wp.PoolClosedError):
        pool.start()
    with pytest.raises(wp.PoolClosedError):
        pool.get_result().get(0)


def test_a_shutdown_that_takes_too_long_drops_what_waits(pools, gate):
    pool = pools(WorkerPool, 1, 10)
    pool.start()
    held(pool, gate, 1)
    for number in range(1, 4):
        pool.submit_task(Task(number, work.one))
    with pytest.raises(wp.ShutdownTimeoutError, match=r"^shutdown timeout$"):
        pool.graceful_shutdown(0.05)
    assert pool.statistics()["abandoned"] == 3
    gate.touch()
    assert [result.task_id for result in pool.get_result() if result.task_id] == []


def test_nobody_has_to_read_the_results(pools):
    pool = pools(WorkerPool, 2, 5)
    pool.start()
    for number in range(50):
        pool.submit_task_with_timeout(Task(number, number), 30)
    pool.graceful_shutdown(30)
    assert sorted(result.output for result in pool.get_result()) == list(range(50))
    assert list(pool.get_result()) == []


def test_waiting_for_a_result_can_be_bounded(pools):
    pool = pools(WorkerPool, 1, 1)
    pool.start()
    with pytest.raises(queue.Empty):
        pool.get_result().get(0)
    with pytest.raises(queue.Empty):
        pool.get_result().get(0.03)


def test_coroutines_read_the_stream_too(pools):
    pool = pools(WorkerPool, 2, 20)
    pool.start()

    async def read():
        return [result.task_id async for result in pool.get_result()]

    async def main():
        readers = [asyncio.create_task(read()) for _ in range(3)]
        for number in range(20):
            pool.submit_task(Task(number, number))
        await pool.shutdown()
        return [number for part in await asyncio.gather(*readers) for number in part]

    assert sorted(asyncio.run(asyncio.wait_for(main(), 60))) == list(range(20))


def test_a_tasks_timeout_is_enforced(pools):
    pool = pools(WorkerPool, 1, 5)
    pool.start()
    pool.submit_task(Task(1, work.million, timeout=30))
    assert pool.get_result().get(30).output == 499999500000
    seen = threading.Event()
    late = threading.Event()

    def stuck():
        seen.set()
        late.wait(30)

    pool.submit_task(Task(2, stuck, timeout=0.05))
    result = pool.get_result().get(30)
    assert isinstance(result.error, TimeoutError)
    late.set()


def test_calls_that_wait_are_refused_on_a_running_loop(pools):
    pool = pools(WorkerPool, 1, 5)

    async def main():
        pool.submit_task(Task(1))  # This one does not wait.
        for call in (
            lambda: pool.submit_task_with_timeout(Task(1), 1),
            lambda: pool.graceful_shutdown(1),
            pool.advanced_shutdown,
        ):
            with pytest.raises(RuntimeError, match="running event loop"):
                call()

    asyncio.run(main())


# ---- where it runs ---------------------------------------------------------------------------------------------------


def test_what_cannot_travel_runs_here_under_the_same_bounds(stack):
    seen = []
    lock = threading.Lock()
    running = peak = 0

    def change():
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        seen.append(threading.current_thread().name)
        with lock:
            running -= 1

    calls().clear()
    with WorkerPool(2, 50) as pool:
        for number in range(20):
            pool.submit_task(Task(number, change))
        for number in range(20, 30):
            pool.submit_task(Task(number, work.one))
    assert len(seen) == 20
    assert peak <= 2
    assert sorted(result.task_id for result in pool.get_result()) == list(range(30))
    rows = [(row.where, row.calls) for row in calls().rows() if row.call == "WorkerPool.submit_task"]
    assert rows == [("cluster", 10), ("local", 20)]


def test_a_place_can_be_forced(stack):
    seen = []
    with WorkerPool(1, 10, place="cluster") as pool:
        pool.submit_task(Task(1, lambda: seen.append(1)))
    (result,) = pool.get_result()
    assert result.error is None
    assert seen == []
    with WorkerPool(1, 10, place="local") as pool:
        pool.submit_task(Task(1, work.one))
    (result,) = pool.get_result()
    assert result.worker.startswith("caller")


def test_a_timeout_on_a_worker_ends_the_task(stack):
    with WorkerPool(1, 10) as pool:
        pool.submit_task(Task(1, work.forever, timeout=0.1))
        pool.submit_task(Task(2, work.one))
        first, second = (pool.get_result().get(30) for _ in range(2))
    assert isinstance(first.error, TimeoutError)
    assert second.output == 1


@pytest.mark.acl_role("operator")
def test_a_forced_stop_ends_what_runs(stack, gate):
    pool = WorkerPool(1, 10)
    pool.start()
    held(pool, gate, 1)
    pool.submit_task(Task(1, work.one))
    assert pool.advanced_shutdown(0.05, 30.0) is None
    figures, (result,) = pool.statistics(), list(pool.get_result())
    assert {name: figures[name] for name in ("abandoned", "completed", "failed", "running")} == {
        "abandoned": 1, "completed": 1, "failed": 1, "running": 0,
    }  # fmt: skip
    assert (result.task_id, result.output, result.worker_id) == (0, None, 0)
    assert isinstance(result.error, CancelledBatchError)
    assert result.duration > 0
    assert (pool.metrics().tasks_processed, pool.metrics().error_count) == (1, 1)
    with WorkerPool(2, 10) as another:
        another.submit_task(Task(1, work.one))
        assert another.get_result().get(60).output == 1


def test_percentiles_tell_the_slow_tasks_that_an_average_hides(pools):
    pool = pools(WorkerPool, 2, 100, processor=work.pause)
    pool.start()
    for number in range(30):
        pool.submit_task(Task(number, 0.4 if number == 0 else 0.01))
    assert all(pool.get_result().get(60).error is None for _ in range(30))
    metrics, figures = pool.metrics(), pool.statistics()
    assert 0.0095 < metrics.p50_latency <= metrics.p95_latency <= metrics.p99_latency
    assert metrics.p99_latency > 0.38
    assert metrics.p50_latency < 0.38
    assert (figures["p50_seconds"], figures["p99_seconds"]) == (metrics.p50_latency, metrics.p99_latency)


def test_a_thread_of_the_caller_cannot_be_forced(stack):
    started, end = threading.Event(), threading.Event()

    def stuck():
        started.set()
        end.wait(60)

    pool = WorkerPool(1, 10)
    pool.start()
    pool.submit_task(Task(1, stuck))
    assert started.wait(30)
    with pytest.raises(wp.ForceShutdownTimeoutError, match=r"^force shutdown timeout$"):
        pool.advanced_shutdown(0.02, 0.02)
    end.set()


def test_a_task_whose_process_dies_runs_again(stack, tmp_path):
    import functools

    with WorkerPool(2, 10) as pool:
        pool.submit_task(Task(1, functools.partial(work.kill_once, str(tmp_path / "killed"))))
        for number in range(2, 8):
            pool.submit_task(Task(number, work.one))
        found = {result.task_id: result for result in (pool.get_result().get(60) for _ in range(7))}
    assert found[1].output == "survived"
    assert all(found[number].output == 1 for number in range(2, 8))


def test_a_task_that_kills_every_process_is_given_up(stack):
    with WorkerPool(2, 10) as pool:
        pool.submit_task(Task(1, work.kill))
        assert isinstance(pool.get_result().get(100).error, PoisonedError)
        pool.submit_task(Task(2, work.one))
        assert pool.get_result().get(60).output == 1


def test_an_unnamed_pool_leaves_nothing_behind(stack, redis):
    before = set(redis.keys("graft:pool:*"))
    pool = WorkerPool(2, 10)
    pool.start()
    for number in range(10):
        pool.submit_task(Task(number, number))
    assert set(redis.keys("graft:pool:*")) - before
    pool.graceful_shutdown(30)
    assert set(redis.keys("graft:pool:*")) <= before
    assert len(list(pool.get_result())) == 10


def test_values_arrive_as_they_were(stack):
    values = [(1, 2), {3: "x"}, {4, 5}, b"bytes", ValueError("as a value"), None]
    with WorkerPool(2, 10) as pool:
        for number, value in enumerate(values):
            pool.submit_task(Task(number, value))
    found = {result.task_id: result for result in pool.get_result()}
    for number, value in enumerate(values):
        assert repr(found[number].output) == repr(value)
        assert found[number].error is None


def test_a_result_can_be_compared():
    assert Result(1, output=2) == Result(1, output=2)
