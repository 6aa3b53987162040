"""A.2: AsyncWorkerOptimizer."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import threading
import time
from collections import defaultdict
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, Pipeline, ResourcePool
from graft.tasks.errors import ItemTimeoutError, RemoteTraceback, UnreferenceableError
from graft.tasks.policy import RetryPolicy
from tests import samples
from tests.stack import run_python, wait_until


@pytest.fixture
def optimizer():
    return AsyncWorkerOptimizer()


def process(*args, **kwargs):
    return asyncio.run(AsyncWorkerOptimizer().optimize_batch_processing(*args, **kwargs))


def recorder():
    """A task function that stays with the caller, and what it was called with."""
    seen = []

    async def record(item):
        seen.append(item)
        await asyncio.sleep(0)
        return item

    return record, seen


def test_a_fresh_optimizer_is_empty(optimizer):
    assert optimizer.pipelines == optimizer.resource_pools == optimizer.metrics == {}
    assert type(optimizer.metrics) is defaultdict
    assert optimizer.metrics["any"].tasks_processed == 0


# ---- batches: values and order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "seen"),
    [
        ([3, 1, 2], [3, 1, 2]),
        ((1, 2, 3), [1, 2, 3]),
        (range(7), list(range(7))),
        ("abc", ["a", "b", "c"]),
        (b"abc", [97, 98, 99]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 10, True])
def test_whatever_can_be_sliced_is_processed_in_order(items, seen, batch_size):
    record, called = recorder()
    assert process(items, record, batch_size) == seen
    assert sorted(called) == sorted(seen)


def test_results_keep_the_input_order_whatever_finishes_first(stack):
    for func in (samples.square_slowly_if_even, samples.async_square_slowly_if_even):
        assert process(range(12), func, 3, 2) == [x * x for x in range(12)]


def test_entries_are_kept_as_they_are(stack):
    values = [None, [1, 2], (1, [2]), {1: "a", "1": "b"}, {1, 2}, b"\0", Decimal("1.1"), math.inf, 2**200]
    for place in ("local", "cluster"):
        results = process(values, samples.identity, 2, place=place)
        assert results == values
        assert list(map(type, results)) == list(map(type, values))
        (error,) = process([1], samples.return_exception, place=place)
        assert type(error) is ValueError
        assert error.args == (1,)


@given(st.lists(st.integers()), st.integers(1, 12), st.integers(1, 6))
def test_cutting_into_batches_loses_nothing(items, batch_size, max_concurrent):
    record, called = recorder()
    assert process(items, record, batch_size, max_concurrent) == items
    assert sorted(called) == sorted(items)


def test_a_plain_function_and_one_that_returns_an_awaitable_are_accepted():
    assert process([1, 2], lambda item: item + 1, place="local") == [2, 3]
    assert process([1, 2], lambda item: samples.async_square(item), place="local") == [1, 4]


def test_ten_thousand_tiny_items_take_well_under_a_second(stack):
    took = []
    for _ in range(3):  # The first one warms the workers.
        began = time.perf_counter()
        assert process(range(10_000), samples.square) == [x * x for x in range(10_000)]
        took.append(time.perf_counter() - began)
    assert min(took) < 0.8


# ---- batches: where they run -----------------------------------------------------------------------------------------


def test_importable_functions_and_lambdas_run_on_the_workers_and_closures_here(stack):
    here, captured = os.getpid(), []
    assert here not in process(range(4), samples.process_id)
    assert here not in process(range(4), samples.async_process_id)
    assert here not in process(range(4), lambda _: __import__("os").getpid())

    async def closure(item):
        captured.append(item)
        return os.getpid()

    assert set(process(range(4), closure)) == {here}
    assert sorted(captured) == [0, 1, 2, 3]
    assert set(process([threading.Lock()], lambda _: os.getpid())) == {here}
    assert set(process(range(4), samples.process_id, place="local")) == {here}
    lock = threading.Lock()
    with pytest.raises(UnreferenceableError):
        process([1], lambda _: lock, place="cluster")


# ---- batches: concurrency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "max_concurrent", "most"), [(10, 5, 50), (3, 2, 6), (1, 1, 1), (10, 500, 200)])
def test_concurrency_is_the_product_of_both_numbers(batch_size, max_concurrent, most):
    running, peaks = [0], []

    async def work(item):
        running[0] += 1
        peaks.append(running[0])
        await asyncio.sleep(0.001)
        running[0] -= 1

    process(range(200), work, batch_size, max_concurrent)
    assert max(peaks) == most


def test_the_product_bounds_the_whole_cluster(stack, tmp_path):
    process([(str(tmp_path / "log"), number) for number in range(24)], _note_overlap, 3, 2)
    most = running = 0
    for line in (tmp_path / "log").read_text().split():
        running += 1 if line == "in" else -1
        most = max(most, running)
    assert 2 <= most <= 6


async def _note_overlap(path_and_number):
    samples.note((path_and_number[0], "in"))
    await asyncio.sleep(0.02)
    samples.note((path_and_number[0], "out"))


def test_the_event_loop_stays_free_while_the_cluster_works(stack):
    async def main():
        waiting = asyncio.ensure_future(
            AsyncWorkerOptimizer().optimize_batch_processing(range(4), samples.pause, batch_size=1)
        )
        ticks = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, waiting.result()

    ticks, results = asyncio.run(main())
    assert results == [0, 1, 2, 3]
    assert ticks >= 10


# ---- batches: empty input and refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [[], (), "", b"", range(0), set(), {}])
@pytest.mark.parametrize("max_concurrent", [5, 0])
def test_empty_input_gives_an_empty_list_and_asks_for_no_function(items, max_concurrent):
    assert process(items, None, 10, max_concurrent) == []


@pytest.mark.parametrize(
    ("items", "func", "options", "error"),
    [
        ([1], samples.square, {"batch_size": 0}, ValueError),
        ([], samples.square, {"batch_size": 0}, ValueError),
        ([1], samples.square, {"batch_size": -1}, ValueError),
        ([1], samples.square, {"batch_size": 2.0}, TypeError),
        ([], samples.square, {"batch_size": 2.5}, TypeError),
        ([1], samples.square, {"batch_size": None}, TypeError),
        ([1], samples.square, {"max_concurrent": -1}, ValueError),
        ([], samples.square, {"max_concurrent": -1}, ValueError),
        ([1], samples.square, {"max_concurrent": 0}, ValueError),
        ((item for item in [1]), samples.square, {}, TypeError),
        ({1}, samples.square, {}, TypeError),
        ({1: 2}, samples.square, {}, TypeError),
        (None, samples.square, {}, TypeError),
        (5, samples.square, {}, TypeError),
        ([1], None, {}, TypeError),
        ([1], "square", {}, TypeError),
        ([1], samples.square, {"retry": "often"}, TypeError),
        ([1], samples.square, {"place": "moon"}, ValueError),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(items, func, options, error):
    with pytest.raises(error):
        process(items, func, **options)


# ---- batches: errors, retries, limits, cancelling --------------------------------------------------------------------


def test_the_first_error_rises_alone_and_the_other_items_run_on():
    done = []

    async def main():
        async def work(item):
            await asyncio.sleep(0)
            if item == 0:
                raise KeyError("first")
            done.append(item)

        with pytest.raises(KeyError, match="first"):
            await AsyncWorkerOptimizer().optimize_batch_processing(range(30), work, 2, 2)
        assert len(done) < 29
        await asyncio.to_thread(wait_until, lambda: len(done) == 29)

    asyncio.run(main())
    assert sorted(done) == list(range(1, 30))


@pytest.mark.parametrize("func", [samples.raise_value_error, samples.async_raise_value_error])
def test_a_remote_error_keeps_its_type_and_brings_its_traceback(stack, func):
    with pytest.raises(ValueError, match="no 3") as caught:
        process([3], func)
    assert caught.value.args == ("no 3",)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert func.__name__ in str(caught.value.__cause__)


def test_neighbours_of_a_failed_item_run_to_their_end(stack, tmp_path):
    path = str(tmp_path / "log")
    with pytest.raises(IsADirectoryError):
        process([(str(tmp_path), "")] + [(path, str(number)) for number in range(20)], samples.note, 2, 2)
    wait_until(lambda: len((tmp_path / "log").read_text().split()) == 20)


@pytest.mark.parametrize("place", ["local", "cluster"])
def test_retries_are_opt_in(stack, tmp_path, place):
    again = RetryPolicy(runs=3, base=0.0)
    assert process([(str(tmp_path / "again"), 3)], samples.fail_until, place=place, retry=again) == [3]
    with pytest.raises(ConnectionError, match="run 1 of 2"):
        process([(str(tmp_path / "once"), 2)], samples.fail_until, place=place)


def test_an_item_has_its_own_time_limit(stack):
    for func in (samples.sleep, asyncio.sleep):
        with pytest.raises(ItemTimeoutError):
            process([5.0], func, timeout=0.1)


def test_cancelling_the_wait_keeps_what_has_not_begun_from_running(stack, tmp_path):
    path = tmp_path / "log"

    async def main():
        waiting = asyncio.ensure_future(
            AsyncWorkerOptimizer().optimize_batch_processing(
                [(str(path), number) for number in range(400)], _note_overlap, 1, 2
            )
        )
        await asyncio.to_thread(wait_until, path.exists)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    wait_until(lambda: path.read_text().count("in") == path.read_text().count("out"))
    assert path.read_text().count("out") < 200


def test_one_optimizer_serves_successive_event_loops(stack, optimizer):
    for _ in range(3):
        assert asyncio.run(optimizer.optimize_batch_processing([2], samples.async_square)) == [4]


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_processing_here_has_no_side_effects(optimizer):
    items = [[1], [2]]
    assert asyncio.run(optimizer.optimize_batch_processing(items, samples.identity, place="local")) == items
    assert items == [[1], [2]]
    assert optimizer.metrics == optimizer.pipelines == optimizer.resource_pools == {}


def test_the_workers_figures_fill_metrics_and_survive_the_process(stack, optimizer):
    def figure():
        return optimizer.metrics["tests.samples:square_slowly_if_even"]

    asyncio.run(optimizer.optimize_batch_processing(range(4), samples.square_slowly_if_even))
    before = figure().tasks_processed, figure().total_processing_time
    asyncio.run(optimizer.optimize_batch_processing(range(4), samples.square_slowly_if_even))
    assert list(optimizer.metrics) == ["tests.samples:square_slowly_if_even"]
    assert figure().tasks_processed == before[0] + 4
    assert figure().total_processing_time >= before[1] + 0.1
    assert 0 < figure().average_processing_time < 1
    assert abs(figure().last_task_time.timestamp() - time.time()) < 60
    with pytest.raises(ValueError, match="odd"):
        asyncio.run(optimizer.optimize_batch_processing([1], samples.raise_value_error_if_odd))
    assert optimizer.metrics["tests.samples:raise_value_error_if_odd"].errors_count >= 1

    program = """
import asyncio
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer
optimizer = AsyncWorkerOptimizer()
asyncio.run(optimizer.load_metrics())
print(optimizer.metrics["tests.samples:square_slowly_if_even"].tasks_processed)
"""
    later = run_python(stack, program)
    assert later.stdout.strip() == str(figure().tasks_processed), later.stderr


def test_profiling_shows_the_cluster_under_overall_metrics_only(stack, optimizer):
    asyncio.run(optimizer.optimize_batch_processing([1], samples.square))
    report = optimizer.profile_performance()
    assert list(report) == ["pipelines", "resource_pools", "overall_metrics"]
    assert report["overall_metrics"]["tasks_processed"] >= 1
    assert report["overall_metrics"]["functions"]["tests.samples:square"]["items"] >= 1


MUTE_BROKER = """
import json, sys
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer
optimizer = AsyncWorkerOptimizer()
optimizer.setup_pipeline([])
optimizer.manage_resource_pool("pool", {"min_workers": 2, "max_workers": 8})
json.dump(optimizer.profile_performance(), sys.stdout)
"""


def test_profiling_needs_no_broker_that_answers(redis_stack):
    """A broker that accepts connections and says nothing: the figures are an extra, and what is known comes at once."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        done = run_python(redis_stack, MUTE_BROKER, 10, env={"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url})
    assert json.loads(done.stdout) == {
        "pipelines": {"pipeline_0": {"throughput": 0.0, "average_latency": 0.0, "stage_times": {}}},
        "resource_pools": {"pool": {"active_workers": 2, "utilization": 0.25}},
        "overall_metrics": {},
    }, done.stderr


# ---- pipelines and pools ---------------------------------------------------------------------------------------------


def test_pipelines_are_numbered_and_no_live_one_is_overwritten(optimizer):
    stages = [samples.square]
    first, second = optimizer.setup_pipeline(stages), optimizer.setup_pipeline([])
    assert type(first) is Pipeline
    assert first.stages is stages
    assert optimizer.pipelines == {"pipeline_0": first, "pipeline_1": second}
    del optimizer.pipelines["pipeline_0"]
    third = optimizer.setup_pipeline([])
    assert optimizer.pipelines == {"pipeline_1": second, "pipeline_2": third}


def test_a_resource_pool_is_made_from_its_configuration(optimizer):
    pool = optimizer.manage_resource_pool("a", {"min_workers": 1, "max_workers": 4, "colour": "red"})
    assert type(pool) is ResourcePool
    assert (pool.name, pool.min_workers, pool.max_workers) == ("a", 1, 4)
    assert (pool.scaling_factor, pool.idle_timeout) == (2.0, 30)
    config = {"min_workers": 2, "max_workers": 2, "scaling_factor": 1.5, "idle_timeout": 5}
    replaced = optimizer.manage_resource_pool("a", config)
    assert (replaced.scaling_factor, replaced.idle_timeout) == (1.5, 5)
    assert optimizer.resource_pools == {"a": replaced}


@pytest.mark.parametrize("missing", ["min_workers", "max_workers"])
def test_an_incomplete_configuration_is_refused(optimizer, missing):
    config = {"min_workers": 1, "max_workers": 2}
    del config[missing]
    with pytest.raises(KeyError, match=missing):
        optimizer.manage_resource_pool("a", config)
    assert optimizer.resource_pools == {}


# ---- distribution ----------------------------------------------------------------------------------------------------


def worker(name, load=0.0, capacity=1.0):
    return {"id": name, "load": load, "capacity": capacity}


def weights(*values):
    return [{"weight": value} for value in values]


def distribute(tasks, workers):
    return asyncio.run(AsyncWorkerOptimizer().distribute_tasks(tasks, workers))


def test_each_task_goes_to_the_least_loaded_worker():
    workers = [worker("a", 0.5, 10), worker("b", 0, 5), worker("c", 0, 1)]
    tasks = weights(1, 1, 1, 1)
    distribution = distribute(tasks, workers)
    assert distribution == {"b": 3, "c": 1}
    assert list(distribution) == ["b", "c"]
    assert type(distribution) is dict
    assert [each["id"] for each in workers] == ["a", "b", "c"]
    assert [each["load"] for each in workers] == [0.5, pytest.approx(0.6), 1.0]
    assert isinstance(workers[2]["load"], float)


def test_ties_keep_the_order_of_the_previous_ranking():
    workers = [worker("a"), worker("b"), worker("c")]
    assert list(distribute(weights(1, 1, 1), workers)) == ["a", "b", "c"]
    assert distribute(weights(0, 0), [worker("a"), worker("b")]) == {"a": 2}


def test_repeated_calls_go_on_from_the_loads_they_left():
    workers = [worker("a"), worker("b")]
    assert distribute(weights(5), workers) == {"a": 1}
    assert distribute(weights(1, 1), workers) == {"b": 2}


def test_equal_ids_are_counted_together():
    assert distribute(weights(1, 1), [worker("a"), worker("a")]) == {"a": 2}


@pytest.mark.parametrize(
    ("tasks", "workers", "error"),
    [
        (weights(1), [], IndexError),
        (weights(1), [worker("a", capacity=0)], ZeroDivisionError),
        ([{}], [worker("a")], KeyError),
        ([], [{"id": "a", "capacity": 1}], KeyError),
        (weights(1), [{"id": "a", "load": 0}], KeyError),
        (weights(1), [{"load": 0, "capacity": 1}], KeyError),
    ],
)
def test_impossible_distributions_are_refused(tasks, workers, error):
    with pytest.raises(error):
        distribute(tasks, workers)


def test_nothing_to_distribute_gives_nothing():
    assert distribute([], []) == distribute([], [worker("a")]) == {}


@given(
    st.lists(st.integers(0, 50), max_size=30),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_every_task_is_given_out_and_loads_grow_by_what_was_assigned(tasks, figures):
    workers = [worker(place, load, capacity) for place, (load, capacity) in enumerate(figures)]
    distribution = distribute(weights(*tasks), workers)
    assert sum(distribution.values()) == len(tasks)
    assert all(distribution.values())
    grown = sum((each["load"] - load) * capacity for each, (load, capacity) in zip(workers, figures, strict=True))
    assert grown == pytest.approx(sum(tasks))


def test_the_live_cluster_can_be_distributed_to(stack, optimizer):
    workers = asyncio.run(optimizer.live_workers())
    assert {each["capacity"] for each in workers} >= {2, 50}
    assert all(each["load"] >= 0 for each in workers)
    assert sum(distribute(weights(*[1] * 20), workers).values()) == 20


def score(distribution, workers, **options):
    workers = [worker(name) for name in workers] if isinstance(workers, str) else workers
    return AsyncWorkerOptimizer().calculate_balance_score(distribution, workers, **options)


@pytest.mark.parametrize(
    ("distribution", "workers", "expected"),
    [
        ({}, "abc", 0.0),
        ({}, "", 0.0),
        ({"a": 0, "b": 0}, "ab", 1.0),
        ({"a": 9}, "a", 1.0),
        ({"a": 9}, "ab", 0.0),
        ({"a": 9}, "abc", 0.0),
        ({"a": 6, "b": 3, "c": 0}, "abc", 0.18350341907227408),
        ({"a": 1, "b": 2, "c": 3}, "abc", 0.5917517095361370),
        ({"a": 4, "b": 5, "c": 3}, "abc", 0.7958758547680684),
        ({"a": 5, "b": 5}, "ab", 1.0),
        ({"a": 1, "b": 1, "stranger": 2}, "ab", 0.5),
    ],
)
def test_the_balance_score_measures_how_even_the_counts_are(distribution, workers, expected):
    found = score(distribution, workers)
    assert type(found) is float
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_distribution_over_nobody_is_refused():
    for distribution in ({"a": 1}, {"a": 0}):
        with pytest.raises(ZeroDivisionError):
            score(distribution, [])


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 1000)))
def test_the_balance_score_is_a_fraction_and_full_only_for_equal_counts(distribution):
    found = score(distribution, "abcdef")
    assert 0.0 <= found <= 1.0
    counts = {distribution.get(name, 0) for name in "abcdef"}
    if distribution and found == 1.0 and sum(distribution.values()):
        assert len(counts) == 1


def test_the_balance_score_can_be_weighted_by_capacity():
    workers = [worker("a", capacity=2), worker("b", capacity=8)]
    assert score({"a": 2, "b": 8}, workers) < 0.5
    assert score({"a": 2, "b": 8}, workers, by_capacity=True) == 1.0
    assert score({"a": 5, "b": 5}, workers) == 1.0
    assert score({"a": 5, "b": 5}, workers, by_capacity=True) < 1.0
