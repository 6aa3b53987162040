"""A.3: Pipeline."""

from __future__ import annotations

import asyncio

import pytest

from graft.compat.async_worker_optimization import Pipeline
from graft.tasks.policy import RetryPolicy
from tests import samples
from tests.stack import wait_until

ZEROS = {"throughput": 0.0, "average_latency": 0.0, "stage_times": {}}


def run(stages, items, **options):
    return asyncio.run(Pipeline(stages, **options).process(items))


@pytest.mark.parametrize("place", ["local", "cluster"])
def test_every_item_passes_all_stages_in_order(stack, place):
    stages = [samples.square, samples.async_square, samples.square_slowly_if_even]
    for items in ([3, 2, 1], (3, 2, 1), range(5), {4: "keys only"}):
        assert run(stages, items, place=place) == [item**8 for item in items]
    assert run(stages, [], place=place) == []


def test_without_stages_the_items_come_back_untouched():
    for items in ([1], (1,), range(3), "abc"):
        assert run([], items) is items


def test_the_stages_are_the_callers_own_list():
    stages = []
    pipeline = Pipeline(stages, place="local")
    assert pipeline.stages is stages
    stages.append(samples.square)
    assert asyncio.run(pipeline.process([3])) == [9]


def test_a_barrier_lies_between_stages_and_none_within():
    order, together = [], 1500
    barrier = asyncio.Barrier(together)

    async def first(item):
        await barrier.wait()  # Ends only if all items run at once.
        order.append(1)
        return item

    async def second(item):
        order.append(2)
        return item

    asyncio.run(asyncio.wait_for(Pipeline([first, second]).process(range(together)), 30))
    assert order == [1] * together + [2] * together


@pytest.mark.parametrize("bound", [1, 3, 20, 30, 37])
def test_the_fan_out_of_a_stage_can_be_bounded(bound):
    running, peaks = [0], []

    async def work(item):
        running[0] += 1
        peaks.append(running[0])
        await asyncio.sleep(0)
        running[0] -= 1

    run([work], range(100), max_concurrent=bound)
    assert max(peaks) == bound


def test_a_bound_that_lets_nothing_start_is_refused():
    with pytest.raises(ValueError, match="max_concurrent=0"):
        Pipeline([], max_concurrent=0)


def test_figures_add_up_over_runs():
    captured = []

    async def work(item):
        captured.append(item)
        await asyncio.sleep(0.01)

    pipeline = Pipeline([work, work])
    assert pipeline.get_metrics() == ZEROS
    assert pipeline.metrics == {"items_processed": 0, "total_time": 0.0, "stage_times": {}}
    asyncio.run(pipeline.process([1, 2, 3]))
    asyncio.run(pipeline.process([4]))
    metrics, report = pipeline.metrics, pipeline.get_metrics()
    assert list(metrics) == ["items_processed", "total_time", "stage_times"]
    assert metrics["items_processed"] == 4
    assert metrics["total_time"] >= 0.04
    assert list(report) == ["throughput", "average_latency", "stage_times"]
    assert report["throughput"] == 4 / metrics["total_time"]
    assert report["average_latency"] == metrics["total_time"] / 4
    assert type(report["stage_times"]) is dict
    assert list(report["stage_times"]) == ["stage_0", "stage_1"]
    assert all(seconds >= 0.02 for seconds in report["stage_times"].values())


def test_a_total_time_of_nothing_divides_nothing():
    pipeline = Pipeline([])
    asyncio.run(pipeline.process([1, 2]))
    pipeline.metrics["total_time"] = 0.0  # What a coarse clock says of a pipeline without stages.
    assert pipeline.metrics["items_processed"] == 2
    assert pipeline.get_metrics() == ZEROS


def test_an_error_ends_the_pipeline_while_its_stage_goes_on():
    done, later = [], []

    async def first(item):
        return item

    async def second(item):
        await asyncio.sleep(0)
        if item == 0:
            raise KeyError("first")
        done.append(item)

    async def third(item):
        later.append(item)

    pipeline = Pipeline([first, second, third])

    async def main():
        with pytest.raises(KeyError, match="first"):
            await pipeline.process(range(10))
        await asyncio.to_thread(wait_until, lambda: len(done) == 9)

    asyncio.run(main())
    assert later == []
    assert pipeline.metrics["items_processed"] == pipeline.metrics["total_time"] == 0
    assert list(pipeline.metrics["stage_times"]) == ["stage_0"]


def test_a_remote_error_ends_the_pipeline_while_its_stage_goes_on(stack, tmp_path):
    path = tmp_path / "log"
    items = [(str(tmp_path), "")] + [(str(path), str(number)) for number in range(10)]
    with pytest.raises(IsADirectoryError):
        run([samples.note, samples.raise_value_error], items)
    wait_until(lambda: len(path.read_text().split()) == 10)


def test_a_generator_fails_after_its_items_went_through():
    seen = []

    async def work(item):
        seen.append(item)

    pipeline = Pipeline([work])
    with pytest.raises(TypeError):
        asyncio.run(pipeline.process(item for item in range(3)))
    assert seen == [0, 1, 2]
    assert pipeline.metrics["items_processed"] == pipeline.metrics["total_time"] == 0


@pytest.mark.parametrize(("stages", "items"), [([None], [1]), ([samples.square], None), ([], None)])
def test_what_cannot_be_called_or_counted_is_refused(stages, items):
    with pytest.raises(TypeError):
        run(stages, items, place="local")


def test_failed_items_of_a_stage_can_be_run_again(stack, tmp_path):
    paths = [(str(tmp_path / str(number)), 2) for number in range(3)]
    assert run([samples.fail_until, samples.square], paths, retry=RetryPolicy(runs=2, base=0.0)) == [4, 4, 4]
    with pytest.raises(ConnectionError):
        run([samples.fail_until], [(str(tmp_path / "once"), 2)])


def test_the_callers_loop_waits_and_no_worker_does(stack):
    # Two pool processes and eight pipelines: a waiting task would leave none for the stages.
    async def main():
        return await asyncio.gather(*(Pipeline([samples.pause, samples.square]).process([n]) for n in range(8)))

    assert asyncio.run(asyncio.wait_for(main(), 60)) == [[n * n] for n in range(8)]
