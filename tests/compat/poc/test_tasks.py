"""E.2: the tasks, their queues, routes and Beat entries."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from graft.compat import celery_migration_poc as poc
from graft.config.celery_app import app
from graft.config.deployment import settings
from graft.config.queues import own_names
from graft.tasks.cleanup.redis_keys import remove_old_results
from graft.tasks.legacy import migration_poc_metrics
from graft.tasks.messages import message_format
from graft.tasks.sending import by_task_name
from tests.roles import acting_as
from tests.stack import wait_until

WAIT = 30.0
SHORT = ["process_item", "batch_process", "heavy_computation", "cleanup_old_results", "collect_metrics"]
BOTH = [*SHORT, *(f"celery_migration_poc.{name}" for name in SHORT)]


def run(name, *args):
    return by_task_name.find(name).delay(*args).get(timeout=WAIT)


@pytest.mark.parametrize("name", ["process_item", "celery_migration_poc.process_item"])
def test_a_plain_delay_processes_an_item_under_both_names(stack, name):
    result = run(name, {"id": "a"})
    assert list(result) == ["id", "processed", "timestamp", "worker_id"]
    assert (result["id"], result["processed"]) == ("a", True)
    assert datetime.fromisoformat(result["timestamp"]).utcoffset() == timedelta(0)
    assert result["worker_id"] in {worker.name for worker in stack.workers}


@pytest.mark.parametrize("name", ["batch_process", "celery_migration_poc.batch_process"])
def test_a_batch_gives_its_items_in_order_and_waits_for_nothing_inside_a_task(stack, name):
    assert [result["id"] for result in run(name, [{"id": number} for number in range(20)])] == list(range(20))
    assert run(name, []) == []


def test_batches_that_fill_every_process_do_not_block_each_other(stack):
    sent = [poc.batch_process.delay([{"id": number} for number in range(3)]) for _ in range(10)]
    assert [[item["id"] for item in each.get(timeout=WAIT)] for each in sent] == [[0, 1, 2]] * 10


@pytest.mark.parametrize("name", ["heavy_computation", "celery_migration_poc.heavy_computation"])
def test_a_heavy_computation_answers(stack, name):
    result = run(name, {"id": 7})
    assert list(result) == ["id", "result", "timestamp"]
    assert (result["id"], result["result"]) == (7, "computed")


@pytest.mark.parametrize("name", BOTH)
def test_every_task_is_routed_to_a_queue_that_is_read(name):
    queue = app.amqp.router.route({}, name)["queue"].name
    expected = dict(zip(SHORT, ["default", "batch", "heavy", "maintenance", "maintenance"], strict=True))
    assert queue == expected[name.rpartition(".")[2]]
    assert queue in own_names("cpu")


@pytest.mark.acl_role("operator")
def test_beat_names_tasks_that_exist(stack):
    entries = {name: app.conf.beat_schedule[name] for name in ("cleanup-old-results", "collect-metrics")}
    (registered,) = app.control.inspect([stack.worker.name], timeout=10, limit=1).registered().values()
    for entry in entries.values():
        assert entry["task"] in registered
        assert entry["options"]["queue"] in own_names()
    assert (entries["cleanup-old-results"]["schedule"].hour, entries["cleanup-old-results"]["schedule"].minute) == (
        {2},
        {0},
    )
    assert entries["collect-metrics"]["schedule"] == 60.0
    assert set(BOTH) <= set(registered)


def test_an_item_is_retried_three_times_sixty_seconds_apart(stack):
    waits = [poc.process_item.policy.wait_after(run, OSError()) for run in (1, 2, 3, 4)]
    assert waits == [60.0, 60.0, 60.0, None]
    sent = poc.process_item.delay("no mapping, so no id")
    wait_until(lambda: sent.state == "RETRY")
    with acting_as("operator"):
        sent.revoke()


def test_the_tasks_have_the_limits_of_the_old_settings():
    for task in (poc.process_item, poc.batch_process, poc.heavy_computation):
        assert (task.time_limit, task.soft_time_limit, task.acks_late, task.track_started) == (300, 270, True, True)
    assert app.conf.worker_max_tasks_per_child == 1000
    assert app.conf.timezone == "UTC"


def test_old_results_are_removed_and_counted(stack, redis):
    old = (datetime.now(UTC) - timedelta(seconds=settings().result_ttl + 60)).isoformat()
    for number in range(3):
        redis.set(f"celery-task-meta-old-{number}", json.dumps({"status": "SUCCESS", "date_done": old}))
    fresh = poc.heavy_computation.delay({"id": 1})
    fresh.get(timeout=WAIT)
    redis.set("celery-task-meta-foreign", "no JSON", ex=60)
    redis.set("celery-task-meta-running", json.dumps({"status": "STARTED", "date_done": None}), ex=60)
    assert run("cleanup_old_results") == {"cleaned": 3}
    assert run("cleanup_old_results") == {"cleaned": 0}
    assert redis.exists(f"celery-task-meta-{fresh.id}", "celery-task-meta-foreign", "celery-task-meta-running") == 3
    with acting_as("worker"):
        assert remove_old_results() == 0


def test_metrics_are_kept_for_all_to_read(stack, redis):
    redis.delete(migration_poc_metrics.KEY)
    figures = run("collect_metrics")
    assert list(figures) == ["workers", "active_tasks", "queue_lengths", "timestamp"]
    assert set(figures["workers"]) == {worker.name for worker in stack.workers}
    run("celery_migration_poc.collect_metrics")
    newest, older = poc.CeleryWorkerOptimizer().stored_metrics()
    assert older == figures
    assert newest["timestamp"] > older["timestamp"]


DEPTHS = """
from graft.compat.celery_migration_poc import CeleryWorkerOptimizer, celery_app, heavy_computation, process_item

optimizer = CeleryWorkerOptimizer()
for priority in range(10):
    process_item.apply_async(({"id": 1},), priority=priority)
heavy_computation.delay({"id": 1})
metrics = optimizer.get_worker_metrics()
assert metrics["workers"] == metrics["active_tasks"] == {}, metrics
lengths = metrics["queue_lengths"]
assert lengths["default"] == 10 and lengths["heavy"] == 1 and sum(lengths.values()) == 11, lengths
assert optimizer.unacknowledged() == 0
try:
    optimizer.dynamic_load_balancing("low", timeout=1)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_queue_lengths_count_every_priority_and_without_workers_there_are_none(fresh_stack):
    from tests.stack import run_python

    finished = run_python(fresh_stack(cpu=0), DEPTHS)
    assert finished.stdout.startswith("TaskQueueError no prefork worker is alive"), finished.stderr


def test_a_queue_has_a_list_for_each_priority():
    assert message_format.lists("batch") == ["batch", *(f"batch\x06\x16{step}" for step in range(1, 10))]
