"""E.3: HybridWorkerOptimizer and what belongs to it; its tests with Ray itself are in test_ray.py."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import pytest

from graft.compat import celery_ray_hybrid_poc as poc
from graft.compat.celery_ray_hybrid_poc import ray_side
from graft.config.celery_app import app
from graft.config.redis_client import shared
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.legacy import migration_poc_metrics
from tests import samples
from tests.compat.poc import work
from tests.roles import acting_as
from tests.stack import run_python

WAIT = 30.0


@pytest.fixture
def optimizer():
    return poc.HybridWorkerOptimizer()


def hybrid(optimizer, *args, **kwargs):
    return asyncio.run(optimizer.hybrid_optimization(*args, **kwargs))


# ---- the selection rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 99, 100, 101, 500])
def test_one_function_gives_the_same_results_at_any_size(stack, optimizer, number):
    outcome = hybrid(optimizer, range(number), func=work.doubled)
    assert outcome.result == [2 * x for x in range(number)]
    assert outcome.method == "celery"
    assert outcome.metrics["items_count"] == number


def test_the_result_keeps_its_shape_on_both_sides_of_the_threshold(stack, optimizer):
    for number in (99, 100):
        outcome = hybrid(optimizer, [{"id": each} for each in range(number)])
        assert [item["id"] for item in outcome.result] == list(range(number))
        assert {tuple(item) for item in outcome.result} == {("id", "processed_by", "timestamp")}


@acting_as("operator")
def envelopes():
    """How many the workers have run so far; pool processes tell what they ran within a second."""
    looks = []
    while len(looks) < 4 or len(set(looks[-4:])) > 1:
        time.sleep(0.4)
        workers = migration_poc_metrics.measure()["workers"].values()
        looks.append(sum(stats["total"].get("graft.batch", 0) for stats in workers))
    return looks[-1]


def taken_by(optimizer, number, **options):
    before = envelopes()
    hybrid(optimizer, range(number), func=work.doubled, **options)
    return envelopes() - before


def test_below_the_threshold_every_item_is_a_task_and_from_it_on_they_share(stack, optimizer):
    assert taken_by(optimizer, 99) == 99
    assert taken_by(optimizer, 100) < 100
    assert taken_by(optimizer, 20, threshold=10) < 20


def test_an_outcome_has_the_old_fields_and_an_id_of_its_own(stack, optimizer):
    outcomes = [hybrid(optimizer, [1]) for _ in range(5)]
    assert len({outcome.task_id for outcome in outcomes}) == 5
    for outcome in outcomes:
        assert outcome.task_id.startswith("hybrid_")
        assert outcome.processing_time > 0
        assert list(outcome.metrics) == ["items_count", "avg_time_per_item", "memory_usage"]
        assert 1 < outcome.metrics["memory_usage"] < 100_000


def test_no_items_are_no_error(stack, optimizer):
    for threshold in (0, 100):
        outcome = hybrid(optimizer, [], threshold)
        assert (outcome.result, outcome.metrics["items_count"], outcome.metrics["avg_time_per_item"]) == ([], 0, 0.0)
    assert asyncio.run(optimizer.optimize_with_ray([], work.doubled)) == []
    assert optimizer.optimize_with_celery([], "process_small_batch") == []


def test_a_function_that_holds_state_stays_with_its_caller_and_method_says_so(stack, optimizer):
    seen = []
    for number in (2, 200):
        outcome = hybrid(optimizer, range(number), func=seen.append)
        assert outcome.method == "local"
    assert len(seen) == 202


@pytest.mark.parametrize("number", [5, 150])
def test_an_item_s_own_error_is_raised(stack, optimizer, number):
    with pytest.raises(ValueError, match="is odd"):
        hybrid(optimizer, range(number), func=samples.raise_value_error_if_odd)


def test_a_hybrid_call_leaves_the_event_loop_free(stack, optimizer):
    async def main():
        call = asyncio.ensure_future(optimizer.hybrid_optimization([0.3], func=samples.sleep))
        ticks = 0
        while not call.done():
            ticks += 1
            await asyncio.sleep(0)
        return ticks, call.result().result

    ticks, result = asyncio.run(main())
    assert ticks > 10
    assert result == [0.3]


def test_in_a_task_a_hybrid_call_runs_in_place(stack):
    import graft

    assert graft.submit(_hybrid_inside, [3]).collect(WAIT) == [("local", [0, 2, 4])]


def _hybrid_inside(number):
    outcome = asyncio.run(poc.HybridWorkerOptimizer().hybrid_optimization(range(number), func=work.doubled))
    return outcome.method, outcome.result


# ---- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["process_small_batch", "celery_ray_hybrid_poc.process_small_batch"])
def test_items_go_to_a_named_task_in_order(stack, optimizer, name):
    results = optimizer.optimize_with_celery([*range(30), {"id": "x"}], name)
    assert [result["id"] for result in results] == [*range(30), "x"]
    assert datetime.fromisoformat(results[0]["timestamp"])


def test_an_unknown_task_is_an_error(optimizer):
    with pytest.raises(ValueError, match="Task nonsense not found"):
        optimizer.optimize_with_celery([1], "nonsense")


@pytest.mark.parametrize("number", [0, 1, 99, 100, 333])
@pytest.mark.parametrize("prefix", ["", "celery_ray_hybrid_poc."])
def test_a_job_is_spread_over_tasks_without_waiting_in_one(stack, number, prefix):
    task = app.tasks[f"{prefix}orchestrate_hybrid_job"]
    answer = task.delay({"items": [{"id": each} for each in range(number)]}).get(timeout=WAIT)
    assert list(answer) == ["job_id", "method", "processing_time", "metrics", "result"]
    assert [item["id"] for item in answer["result"]] == list(range(number))
    assert (answer["method"], answer["metrics"]["items_count"]) == ("celery", number)
    assert answer["job_id"].startswith("hybrid_")


def test_jobs_that_fill_every_process_do_not_block_each_other(stack):
    jobs = [poc.orchestrate_hybrid_job.delay({"items": list(range(12)), "threshold": 10}) for _ in range(8)]
    answers = [job.get(timeout=WAIT) for job in jobs]
    assert len({answer["job_id"] for answer in answers}) == 8
    assert all([item["id"] for item in answer["result"]] == list(range(12)) for answer in answers)


def test_tasks_that_were_replaced_leave_no_record_of_their_run(stack):
    sent = poc.orchestrate_hybrid_job.delay({"items": [1, 2]})
    sent.get(timeout=WAIT)
    assert not shared().exists(f"graft:run:{sent.id}:0")


UNREACHABLE = """
import os
os.environ["CELERY_BROKER_URL"] = os.environ["CELERY_RESULT_BACKEND"] = "redis://127.0.0.1:1/0"
from graft.compat.celery_ray_hybrid_poc import HybridWorkerOptimizer
try:
    HybridWorkerOptimizer().optimize_with_celery([1], "process_small_batch")
except ConnectionError as error:
    print(type(error).__name__, "127.0.0.1:1" in str(error))
"""


def test_a_broker_out_of_reach_is_named(redis_stack):
    finished = run_python(redis_stack, UNREACHABLE)
    assert finished.stdout.split() == [BrokerUnavailable.__name__, "True"], finished.stderr


# ---- pipeline, pool, comparison --------------------------------------------------------------------------------------


def test_a_pipeline_hands_one_value_through_its_stages(stack, optimizer):
    pipeline = optimizer.create_adaptive_pipeline()
    assert pipeline.add_stage("double", work.doubled) is pipeline
    pipeline.add_stage("again", work.doubled_async, use_ray=True).add_stage("here", lambda x: [x])
    assert [stage["name"] for stage in pipeline.stages] == ["double", "again", "here"]
    assert list(pipeline.stages[1]) == ["name", "func", "use_ray"]
    assert asyncio.run(pipeline.execute(3)) == [12]
    assert asyncio.run(poc.AdaptivePipeline(optimizer).execute("as it was")) == "as it was"


def test_a_stage_that_fails_ends_the_pipeline_with_its_own_error(stack, optimizer):
    seen = []
    pipeline = poc.AdaptivePipeline(optimizer).add_stage("bad", samples.raise_value_error).add_stage("no", seen.append)
    with pytest.raises(ValueError, match="no 1"):
        asyncio.run(pipeline.execute(1))
    assert seen == []
    with pytest.raises(TypeError, match="cannot be called"):
        pipeline.add_stage("name only", "func")


def test_a_worker_pool_without_ray_marks_and_counts(stack):
    pool = poc.RayWorkerPool()
    assert pool.actor is None
    assert pool.process_batch([1, "b"]) == [{"item": 1, "processed": True}, {"item": "b", "processed": True}]
    assert pool.process_batch([]) == []
    assert pool.get_stats() == {"pool_size": 4, "tasks_processed": 2}
    with pytest.raises(ValueError, match="size=0"):
        poc.RayWorkerPool(0)


def test_the_ways_are_compared(stack, optimizer, capsys):
    comparator = poc.PerformanceComparator(optimizer)
    results = asyncio.run(comparator.compare_methods([{"id": each} for each in range(10)], iterations=2))
    assert results is comparator.results
    assert list(results) == ["celery", "ray", "hybrid"]
    for row in results.values():
        assert list(row) == ["method", "avg_time", "items_count", "throughput"]
        assert (row["method"], row["items_count"]) == ("celery", 10)
        assert row["throughput"] > 0
    assert list(comparator.percentiles) == list(results)
    for name, spread in comparator.percentiles.items():
        assert 0 < spread["p50_time"] <= results[name]["avg_time"] <= spread["p95_time"] == spread["p99_time"]
    comparator.print_comparison()
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(ValueError, match="iterations=0"):
        asyncio.run(comparator.compare_methods([1], iterations=0))


def test_the_demo_runs_to_its_end(stack, capsys):
    poc.demo_hybrid_optimization()
    shown = capsys.readouterr().out
    assert "50 items: celery, 50 results" in shown
    assert "500 items: celery, 500 results" in shown


# ---- Ray that is not there -------------------------------------------------------------------------------------------


def test_ray_that_is_asked_for_and_missing_is_never_silent(monkeypatch, caplog):
    monkeypatch.setattr(ray_side, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"celery-graft\[ray\]"):
        poc.HybridWorkerOptimizer(use_ray=True)
    with pytest.raises(ImportError):
        poc.RayWorkerPool.remote()
    monkeypatch.setenv("GRAFT_RAY", "1")
    assert poc.HybridWorkerOptimizer().ray_initialized is False
    assert "the bulk engine runs instead" in caplog.text
    assert poc.HybridWorkerOptimizer(use_ray=False).ray_initialized is False
