"""E.4: CeleryIntegrationFramework and CeleryBatchProcessor."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from graft.compat import celery_integration_framework as poc
from graft.compat.celery_integration_framework import TaskStatus, WorkerStatus
from graft.compat.celery_integration_framework.client import step_of
from graft.config.deployment import settings
from graft.config.queues import MIDDLE_PRIORITY, PRIORITY_STEPS
from graft.tasks.errors import RemoteTraceback, UnreferenceableError
from graft.tasks.queues import depth
from graft.tasks.sending import by_task_name
from tests import samples
from tests.compat.poc import work
from tests.people import letters
from tests.stack import run_python, wait_until

WAIT = 30.0


@pytest.fixture
def framework(redis):
    framework = poc.CeleryIntegrationFramework(f"app-{uuid4().hex[:8]}")
    yield framework
    framework.shutdown()


def ended(framework, task, *args, **kwargs):
    return framework.wait_for_task(framework.submit_task(task, args, kwargs), WAIT)


# ---- tasks and results -----------------------------------------------------------------------------------------------


def test_a_task_runs_on_a_real_worker(stack, framework):
    before = datetime.now(UTC)
    result = ended(framework, framework.create_task(work.doubled), 21)
    assert (result.status, result.result, result.traceback) == (TaskStatus.SUCCESS, 42, None)
    assert result.worker_name in {worker.name for worker in stack.workers}
    assert result.execution_time > 0
    assert before <= result.created_at <= result.completed_at


def test_a_framework_with_addresses_of_its_own_reaches_the_same_workers(stack):
    url = settings().broker_url
    framework = poc.CeleryIntegrationFramework("old_app", url, settings().backend_url)
    assert framework.app.main == "old_app"
    assert framework.app.conf.task_compression == "gzip"
    assert framework.app.conf.worker_prefetch_multiplier == 4
    assert framework.app.conf.task_acks_late is True
    assert ended(framework, framework.create_task(work.doubled), 1).result == 2
    framework.shutdown()


def test_an_address_that_is_not_redis_is_refused():
    with pytest.raises(ValueError, match="is not Redis"):
        poc.CeleryIntegrationFramework("app", "amqp://localhost//")


def test_the_process_keeps_its_own_app(framework):
    from celery import current_app

    assert current_app.main == "graft"


def test_values_keep_their_types(stack, framework):
    value = (1, {2: {3, 4}}, b"bytes", datetime.now(UTC), float("inf"))
    assert ended(framework, framework.create_task(work.kept_types), value).result == value


def test_coroutines_and_copies_run_there_too(stack, framework):
    assert ended(framework, framework.create_task(work.doubled_async), 4).result == 8
    assert ended(framework, framework.create_task(lambda x: x + 1, name="plus-one"), 4).result == 5
    assert ended(framework, "plus-one", x=5).result == 6
    framework.create_task(lambda x: x + 2, name="plus-one")
    assert ended(framework, "plus-one", 5).result == 7


def test_a_function_that_holds_state_is_refused(framework):
    seen = []
    task = framework.create_task(lambda x: seen.append(x), name="stateful")
    with pytest.raises(UnreferenceableError):
        framework.submit_task(task, (1,))
    with pytest.raises(TypeError, match="cannot be called"):
        framework.create_task("not a function")


def test_a_task_object_works_as_celerys_do(stack, framework):
    task = framework.create_task(work.doubled)
    assert task.name == f"{framework.app_name}.doubled"
    assert framework.app.tasks[task.name] is task
    assert task(3) == 6
    result = task.delay(5)
    assert framework.wait_for_task(result.id, WAIT).result == 10
    assert result.state == "SUCCESS"


def test_tasks_go_by_name_and_unknown_names_are_errors(stack, framework):
    framework.create_task(work.doubled, name="by name")
    assert ended(framework, "by name", 2).result == 4
    assert ended(framework, "process_item", {"id": 9}).result["id"] == 9  # The deployment's own.
    with pytest.raises(ValueError, match="Task nonsense not found"):
        framework.submit_task("nonsense")


def test_a_failure_is_a_result_with_the_functions_own_error(stack, framework):
    result = ended(framework, framework.create_task(samples.raise_detailed, retry_limit=0), 7)
    assert result.status is TaskStatus.FAILURE
    assert type(result.result) is samples.Detailed
    assert (result.result.code, result.result.reason) == (7, "as asked")
    assert isinstance(result.result.__cause__, RemoteTraceback)
    assert "raise_detailed" in result.traceback


def test_a_task_is_retried_as_often_as_asked_and_ends_with_its_own_last_error(stack, framework, tmp_path):
    path = str(tmp_path / "runs")
    task = framework.create_task(samples.fail_until, retry_limit=2, retry_wait=0.01)
    assert ended(framework, task, (path, 3)).result == 3
    result = ended(framework, task, (str(tmp_path / "more"), 9))
    assert result.status is TaskStatus.FAILURE
    assert (type(result.result), str(result.result)) == (ConnectionError, "run 3 of 9")
    assert result.task_id in {letter.id for letter in letters()}


@pytest.mark.acl_role("operator")
def test_retries_wait_sixty_seconds_and_then_twice_as_long(stack, framework):
    from graft.tasks.policy import ExactWaits

    task = framework.create_task(samples.raise_value_error)
    assert (task.retry_limit, task.retry_wait) == (3, 60.0)
    policy = ExactWaits(task.retry_limit + 1, task.retry_wait, factor=2.0)
    assert [policy.wait_after(run, OSError()) for run in (1, 2, 3, 4)] == [60.0, 120.0, 240.0, None]
    task_id = framework.submit_task(task, (1,))
    wait_until(lambda: framework.get_task_result(task_id).status is TaskStatus.RETRY)
    assert framework.wait_for_task(task_id, 0.05).status is TaskStatus.RETRY
    framework.app.control.revoke(task_id)


def test_waiting_in_vain_leaves_the_true_state(stack, framework):
    unknown = framework.wait_for_task(str(uuid4()), 0.01)
    assert (unknown.status, unknown.result) == (TaskStatus.PENDING, None)
    task_id = framework.submit_task(framework.create_task(samples.sleep), (1.0,))
    wait_until(lambda: framework.get_task_result(task_id).status is TaskStatus.STARTED)
    assert framework.wait_for_task(task_id, 0.0).status is TaskStatus.STARTED
    assert framework.wait_for_task(task_id, WAIT).result == 1.0


def test_a_task_must_not_wait_for_a_task(stack):
    import graft

    with pytest.raises(RuntimeError, match="must not wait"):
        graft.submit(_wait_inside, ["some id"]).collect(WAIT)


def _wait_inside(task_id):
    return poc.CeleryIntegrationFramework("inside").wait_for_task(task_id, 1.0)


def test_an_argument_from_a_stranger_is_never_unpickled(stack, framework):
    kwargs = {"owner": framework.app_name, "retry_limit": 3, "retry_wait": 60.0}
    task_id = by_task_name.send("graft.call", ["bm90IHNpZ25lZA=="], kwargs, queue="default")
    result = framework.wait_for_task(task_id, WAIT)
    assert (result.status, type(result.result).__name__) == (TaskStatus.FAILURE, "SignatureError")


# ---- when and where --------------------------------------------------------------------------------------------------


def test_a_task_may_be_told_when_to_run(stack, framework):
    task = framework.create_task(time.time)
    soon = time.time() + 0.5
    naive = datetime.fromtimestamp(soon)
    for options in ({"countdown": 0.5}, {"eta": soon}, {"eta": naive}, {"eta": naive.astimezone()}):
        result = framework.wait_for_task(framework.submit_task(task, **options), WAIT)
        assert result.result >= soon - 0.01
    past = framework.submit_task(task, eta=datetime.now(UTC) - timedelta(days=1))
    assert framework.wait_for_task(past, WAIT).status is TaskStatus.SUCCESS


def test_what_cannot_be_followed_is_refused(framework):
    task = framework.create_task(work.doubled)
    for options in ({"countdown": -1}, {"countdown": 1, "eta": 1.0}, {"queue": "nowhere"}):
        with pytest.raises(ValueError, match=r"countdown|queue"):
            framework.submit_task(task, (1,), **options)
    for options in ({"queue": "nowhere"}, {"retry_limit": -1}, {"retry_wait": -1.0}):
        with pytest.raises(ValueError, match=r"queue|negative"):
            framework.create_task(work.doubled, **options)


@pytest.mark.parametrize(
    ("priority", "step"), [(10, 0), (9, 1), (5, MIDDLE_PRIORITY), (1, 9), (0, 9), (99, 0), (-9, 9)]
)
def test_larger_priorities_go_first(priority, step):
    assert step_of(priority) == step
    assert step in PRIORITY_STEPS


WAITING = """
from graft.compat.celery_integration_framework import CeleryIntegrationFramework
from graft.tasks.queues import depth
from graft.config.redis_client import shared
from tests import samples

framework = CeleryIntegrationFramework("waiting")
for queue in ("high_priority", "normal", "low_priority"):
    framework.create_task(samples.square, name=queue, queue=queue)
    framework.submit_task(queue, (1,))
framework.submit_task("normal", (1,), queue="low_priority")
urgent = framework.create_task(samples.square, name="urgent", priority=9)
framework.submit_task(urgent, (1,))
assert shared().llen("default\\x06\\x161") == 1
assert {name: n for name, n in depth.waiting().items() if n} == {"high": 1, "default": 2, "low": 2}
assert framework.get_worker_stats()["active_workers"] == 0
print("ok")
"""


def test_tasks_wait_in_the_queue_and_with_the_priority_that_they_have(fresh_stack):
    finished = run_python(fresh_stack(cpu=0), WAITING)
    assert finished.stdout.strip() == "ok", finished.stderr


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_the_figures_come_from_the_workers(stack, framework):
    assert framework.get_worker_stats()["success_rate"] == 0.0
    good = framework.create_task(work.doubled)
    bad = framework.create_task(samples.raise_value_error, retry_limit=0)
    for task in (good, good, good, bad):
        ended(framework, task, 1)
    for reader in (framework, poc.CeleryIntegrationFramework(framework.app_name)):  # Another client sees the same.
        stats = reader.get_worker_stats()
        assert list(stats) == [
            "active_workers",
            "total_tasks",
            "successful_tasks",
            "failed_tasks",
            "success_rate",
            "average_execution_time",
            "workers",
        ]
        assert (stats["total_tasks"], stats["successful_tasks"], stats["failed_tasks"]) == (4, 3, 1)
        assert stats["success_rate"] == 75.0
        assert stats["average_execution_time"] > 0
        assert stats["active_workers"] == len(stack.workers)
        assert set(stats["workers"]) == {worker.name for worker in stack.workers}
        (one,) = [row for row in stats["workers"].values() if row["completed_tasks"] == 3] or [None]
        done = sum(row["completed_tasks"] for row in stats["workers"].values())
        assert done == 3
        if one:
            assert one["memory_usage"] > 1e6
            assert 0 <= one["cpu_usage"] <= 1
    reader.shutdown()


def test_a_worker_s_status_is_its_own(stack, framework):
    assert framework.worker_status("nobody@nowhere") is WorkerStatus.OFFLINE
    wait_until(lambda: framework.worker_status(stack.worker.name) is WorkerStatus.IDLE)
    assert [status.value for status in WorkerStatus] == ["idle", "busy", "offline", "error"]
    assert [status.value for status in TaskStatus] == [status.name for status in TaskStatus]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_come_back_in_order_with_one_id_each(stack, framework):
    processor = framework.create_batch_processor(batch_size=4, max_parallel=3)
    ids = processor.process_batch(framework.create_task(samples.total), list(range(10)))
    assert len(set(ids)) == 3
    results = processor.wait_for_batch(ids, WAIT)
    assert [result.task_id for result in results] == ids
    assert [result.result for result in results] == [6, 22, 17]
    assert [result.result for result in processor.wait_for_batch(ids, WAIT)] == [6, 22, 17]
    assert processor.process_batch("process_item", []) == []
    assert processor.wait_for_batch([]) == []


def test_max_parallel_is_honoured(stack, framework, tmp_path):
    path = str(tmp_path / "times")
    processor = framework.create_batch_processor(batch_size=2, max_parallel=1)
    task = framework.create_task(work.timed_from)
    first = processor.process_batch(task, [(path, number) for number in range(6)])
    second = processor.process_batch(task, [(path, number) for number in range(6, 10)])
    results = processor.wait_for_batch([*first, *second], WAIT)
    assert [result.result for result in results] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert work.most_at_once(path) == 1


def test_the_timeout_is_for_the_whole_and_leaves_the_true_states(stack, framework):
    processor = framework.create_batch_processor(batch_size=1, max_parallel=2)
    ids = processor.process_batch(framework.create_task(_sleep_first), [1.0] * 6)
    wait_until(lambda: framework.get_task_result(ids[0]).status is TaskStatus.STARTED)
    results = processor.wait_for_batch(ids, 0.0)
    assert results[-1].status is TaskStatus.PENDING
    assert TaskStatus.FAILURE not in {result.status for result in results}


def _sleep_first(batch):
    return samples.sleep(batch[0])


def test_a_batch_that_cannot_be_sent_says_why(framework):
    processor = framework.create_batch_processor()
    ids = processor.process_batch("nonsense", [1])
    with pytest.raises(ValueError, match="Task nonsense not found"):
        processor.wait_for_batch(ids, WAIT)
    for sizes in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            framework.create_batch_processor(*sizes)


def test_after_shutdown_nothing_is_sent(stack, redis):
    framework = poc.CeleryIntegrationFramework("over")
    task = framework.create_task(work.doubled)
    processor = framework.create_batch_processor()
    framework.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        framework.submit_task(task, (1,))
    with pytest.raises(RuntimeError):
        processor.process_batch(task, [1])
    assert stack.worker.status is None


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_the_sample_tasks_do_what_they_say(stack, framework):
    tasks = poc.create_sample_tasks(framework)
    assert {task.name for task in tasks.values()} == {
        f"{framework.app_name}.data_processing",
        f"{framework.app_name}.report_generation",
    }
    result = ended(framework, tasks["data_processing"], [1, "two", {3}]).result
    assert (result["processed_count"], len(result["errors"]), result["total_items"]) == (2, 1, 3)
    report = ended(framework, tasks["report_generation"], "../sales of/may").result
    assert list(report) == ["report_type", "generated_at", "status", "file_path"]
    assert Path(report["file_path"]).read_text().startswith('{"report_type": "../sales of/may"')
    Path(report["file_path"]).unlink()


def test_the_sample_tasks_are_registered_in_workers(stack, framework):
    result = ended(framework, "celery_integration_framework.data_processing", [1, 2])
    assert result.result == {"processed_count": 2, "errors": [], "total_items": 2}


def test_an_app_is_made_from_a_mapping(stack):
    app = poc.create_celery_app({"app_name": "made"})
    assert app.main == "made"
    sent = app.tasks["made.data_processing"].delay([1])
    by_task_name.wait([sent.id], WAIT, app)
    assert poc.create_celery_app().main == "celery_integration_framework"
    with pytest.raises(TypeError):
        poc.create_celery_app({"nonsense": "x"})


def test_nothing_waits_in_a_queue_that_nobody_reads(stack):
    wait_until(lambda: not any(depth.waiting().values()))
