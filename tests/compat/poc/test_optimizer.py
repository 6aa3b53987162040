"""E.2: CeleryWorkerOptimizer and AsyncWorkerOptimizationCompat."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from graft.compat import celery_migration_poc
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, LoadLevel, TaskItem, WorkerMetrics
from graft.compat.celery_migration_poc import AsyncWorkerOptimizationCompat, CeleryWorkerOptimizer, celery_app
from graft.tasks.errors import TaskQueueError
from graft.tasks.sending import by_task_name
from tests import samples
from tests.compat.poc import work
from tests.stack import run_python, wait_until

WAIT = 30.0


@pytest.fixture
def optimizer(redis):
    return CeleryWorkerOptimizer()


def ids(results):
    return [result["id"] for result in results]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_every_item_is_processed_on_the_workers_in_order(stack, optimizer):
    items = [{"id": number} for number in range(250)]
    results = asyncio.run(optimizer.optimize_batch_processing(items))
    assert ids(results) == list(range(250))
    assert {result["worker_id"] for result in results} <= {worker.name for worker in stack.workers}
    # The outcomes of an envelope may be told before it ends, and its figures are noted at its end.
    name = "graft.tasks.legacy.migration_poc:process"
    wait_until(lambda: optimizer.metrics[name].tasks_processed >= 250, 10, "all items to be counted")


def test_no_items_give_no_results(optimizer):
    assert asyncio.run(optimizer.optimize_batch_processing([])) == []


def test_waiting_for_a_batch_leaves_the_event_loop_free(stack):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        compat = AsyncWorkerOptimizationCompat()
        results = await compat.optimize_batch_processing([0.2, 0.2], samples.sleep)
        ticking.cancel()
        return results, ticks

    results, ticks = asyncio.run(main())
    assert results == [0.2, 0.2]
    assert ticks > 10


def test_a_bad_item_raises_its_own_error_at_once(stack, optimizer):
    with pytest.raises(AttributeError):
        asyncio.run(optimizer.optimize_batch_processing(["no mapping"]))


def test_bounds_are_checked(optimizer):
    for arguments in ({"batch_size": 0}, {"max_concurrent": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            asyncio.run(optimizer.optimize_batch_processing([{"id": 1}], **arguments))


def test_the_callers_own_function_runs_elsewhere(stack):
    compat = AsyncWorkerOptimizationCompat()
    assert asyncio.run(compat.optimize_batch_processing(range(30), work.doubled)) == [2 * x for x in range(30)]
    assert os.getpid() not in asyncio.run(compat.optimize_batch_processing(range(4), samples.process_id))


def test_max_concurrent_bounds_what_runs_at_once(stack, tmp_path):
    path = str(tmp_path / "times")
    compat = AsyncWorkerOptimizationCompat()
    items = [(path, number) for number in range(6)]
    call = compat.optimize_batch_processing(items, work.timed_item, batch_size=1, max_concurrent=1)
    assert asyncio.run(call) == list(range(6))
    assert work.most_at_once(path) == 1


def test_priority_is_honoured(fresh_stack, tmp_path):
    finished = run_python(fresh_stack(cpu=1), PRIORITY, 60.0, str(tmp_path / "order"))
    assert finished.stdout.split() == ["urgent", "later"], finished.stderr


PRIORITY = """
import asyncio, sys
from graft.compat.celery_migration_poc import AsyncWorkerOptimizationCompat
from graft.tasks.queues import depth
from tests import samples

path = sys.argv[1]

async def main():
    compat = AsyncWorkerOptimizationCompat()

    async def call(func, item, priority):
        await compat.optimize_batch_processing([item], func, 1, 1, priority=priority)

    # The one process is busy and nothing is fetched ahead, so the two wait in the queue.
    busy = asyncio.ensure_future(call(samples.sleep, 2.0, 0))
    while compat.celery_optimizer.unacknowledged() != 1:
        await asyncio.sleep(0.02)
    later = asyncio.ensure_future(call(samples.note, (path, "later"), -3))
    while depth.waiting()["batch"] != 1:
        await asyncio.sleep(0.02)
    urgent = asyncio.ensure_future(call(samples.note, (path, "urgent"), 3))
    await asyncio.gather(busy, later, urgent)

asyncio.run(main())
print(open(path).read())
"""


def test_without_a_function_an_item_is_processed_as_the_demo_asks(stack):
    results = asyncio.run(AsyncWorkerOptimizationCompat().optimize_batch_processing([{"id": 3}], None))
    assert ids(results) == [3]


def test_the_compat_class_is_all_of_the_older_optimizer(stack):
    compat = AsyncWorkerOptimizationCompat()
    assert isinstance(compat, AsyncWorkerOptimizer)
    pipeline = compat.setup_pipeline([work.doubled, work.doubled])
    assert asyncio.run(pipeline.process([1, 2])) == [4, 8]
    compat.create_resource_pool("compat", 3)
    assert compat.celery_optimizer.redis_client.hget("resource_pool:compat", "size") == b"3"


def test_the_small_types_have_one_definition():
    from graft.compat.celery_migration_poc import LoadLevel as Level
    from graft.compat.celery_migration_poc import TaskItem as Item
    from graft.compat.celery_migration_poc import WorkerMetrics as Metrics

    assert (Level, Item, Metrics) == (LoadLevel, TaskItem, WorkerMetrics)


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_hands_each_result_to_the_next_task(stack, optimizer):
    for stages in (["process_item", "heavy_computation"], ["celery_migration_poc.process_item", "heavy_computation"]):
        result = optimizer.setup_pipeline(stages).delay({"id": "x"}).get(timeout=WAIT)
        assert (result["id"], result["result"]) == ("x", "computed")
    assert optimizer.setup_pipeline(["process_item"]).delay({"id": 1}).get(timeout=WAIT)["processed"] is True


def test_unknown_task_names_are_errors(optimizer):
    with pytest.raises(ValueError, match="Task nonsense not found"):
        optimizer.setup_pipeline(["process_item", "nonsense"])
    with pytest.raises(ValueError, match="at least one"):
        optimizer.setup_pipeline([])


# ---- places ----------------------------------------------------------------------------------------------------------


def test_a_resource_pool_is_a_hash_and_made_without_an_answer(redis, optimizer):
    assert optimizer.create_resource_pool("db", 2) is None
    record = redis.hgetall("resource_pool:db")
    assert set(record) == {b"size", b"available", b"created_at"}
    assert (record[b"size"], record[b"available"]) == (b"2", b"2")
    optimizer.create_resource_pool("ten")
    assert redis.hget("resource_pool:ten", "available") == b"10"


def test_no_more_units_are_taken_than_there_are(redis, optimizer):
    optimizer.create_resource_pool("seats", 7)
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(optimizer.take_unit("seats"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 7
    for _ in range(7):
        optimizer.give_unit_back("seats")
    with pytest.raises(ValueError, match="none was taken"):
        optimizer.give_unit_back("seats")


def test_a_pool_made_again_keeps_what_is_taken(redis, optimizer):
    optimizer.create_resource_pool("again", 3)
    assert optimizer.take_unit("again")
    optimizer.create_resource_pool("again", 5)
    assert redis.hget("resource_pool:again", "available") == b"4"
    redis.delete("resource_pool:again")


def test_a_pool_that_cannot_be_is_refused(redis, optimizer):
    for size in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="size="):
            optimizer.create_resource_pool("bad", size)
    for call in (optimizer.take_unit, optimizer.give_unit_back):
        with pytest.raises(KeyError, match="unheard of"):
            call("unheard of")


# ---- load ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(stack):
    with stack.another_worker("cpu", 2) as worker:
        yield worker


def stats(worker):
    found = celery_app.control.inspect([worker.name], timeout=10, limit=1).stats()[worker.name]
    return len(found["pool"]["processes"]), found["prefetch_count"]


LEVELS = [  # Up, up again, down, far up, and what counts as MEDIUM.
    (LoadLevel.HIGH, 8, 4),
    (LoadLevel.HIGH, 8, 4),
    (LoadLevel.LOW, 2, 1),
    (LoadLevel.CRITICAL, 16, 8),
    ("nonsense", 4, 2),
    ("low", 2, 1),
    (LoadLevel.MEDIUM, 4, 2),
]


@pytest.mark.acl_role("operator")
def test_a_load_level_is_reached_exactly_up_and_down(worker, optimizer):
    for level, processes, prefetch in LEVELS:
        answer = optimizer.dynamic_load_balancing(level, worker_group=worker.name.partition("@")[0])
        assert list(answer) == ["load_level", "settings", "applied_at"]
        assert LoadLevel(answer["load_level"]) == SIZED[processes]
        assert answer["settings"] == {"concurrency": processes, "prefetch": prefetch}
        assert stats(worker) == (processes, processes * prefetch)


@pytest.mark.acl_role("operator")
def test_a_level_that_counts_as_medium_is_warned_of_by_name(worker, optimizer, caplog):
    group = worker.name.partition("@")[0]
    assert optimizer.dynamic_load_balancing("HIGH", worker_group=group)["load_level"] == "medium"
    assert (
        "the load level 'HIGH' is none of 'low', 'medium', 'high', 'critical', and counts as 'medium'; write 'high' or "
        "LoadLevel.HIGH" in caplog.messages
    )
    caplog.clear()
    optimizer.dynamic_load_balancing("medium", worker_group=group)
    assert not caplog.messages


SIZED = {2: LoadLevel.LOW, 4: LoadLevel.MEDIUM, 8: LoadLevel.HIGH, 16: LoadLevel.CRITICAL}


@pytest.mark.acl_role("operator")
def test_a_load_level_waits_for_processes_that_are_busy(fresh_stack):
    finished = run_python(fresh_stack(cpu=4), BUSY)
    assert finished.stdout.split() == ["2", "2"], finished.stderr


BUSY = """
import graft
from graft.compat.celery_migration_poc import CeleryWorkerOptimizer
from tests import samples

optimizer = CeleryWorkerOptimizer()
batch = graft.submit(samples.sleep, [1.0] * 4, batch_size=1)
while not any(len(active) == 4 for active in optimizer.get_worker_metrics()["active_tasks"].values()):
    pass
optimizer.dynamic_load_balancing("low")
(stats,) = optimizer.get_worker_metrics()["workers"].values()
assert batch.collect(30) == [1.0] * 4
print(len(stats["pool"]["processes"]), stats["prefetch_count"])
"""


def test_a_group_without_workers_is_an_error(stack, optimizer):
    with pytest.raises(TaskQueueError, match="named gpu@"):
        optimizer.dynamic_load_balancing(LoadLevel.LOW, worker_group="gpu")


@pytest.mark.acl_role("operator")
def test_metrics_name_the_live_workers(stack, optimizer):
    sent = by_task_name.send("process_item", [{"id": 1}])
    by_task_name.wait([sent], WAIT)
    metrics = optimizer.get_worker_metrics()
    assert list(metrics) == ["workers", "active_tasks", "queue_lengths", "timestamp"]
    assert stack.worker.name in metrics["workers"]
    assert stack.worker.name in metrics["active_tasks"]
    wait_until(lambda: not any(optimizer.get_worker_metrics()["queue_lengths"].values()))


@pytest.mark.acl_role("operator")
def test_the_demo_runs_to_its_end(stack, capsys):
    celery_migration_poc.demo_celery_usage()
    shown = capsys.readouterr().out
    assert "ids [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" in shown
    assert "'result': 'computed'" in shown
