"""A.5: PerformanceProfiler."""

from __future__ import annotations

import asyncio
import functools
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, PerformanceProfiler
from tests import samples


def profiling() -> PerformanceProfiler:
    profiler = PerformanceProfiler()
    profiler.start_profiling()
    return profiler


def stats(profiler):
    return profiler.get_profile_report()["function_stats"]


def test_a_profiler_that_was_not_started_counts_nothing():
    profiler = PerformanceProfiler()

    @profiler.profile_async
    async def work():
        return 7

    assert asyncio.run(work()) == 7
    assert profiler.get_profile_report() == {"function_stats": {}}


def test_a_decorated_function_keeps_its_name_and_is_a_coroutine_function():
    async def work(item):
        """Work."""

    profiled = PerformanceProfiler().profile_async(work)
    assert (profiled.__name__, profiled.__doc__, profiled.__wrapped__) == ("work", "Work.", work)
    assert inspect.iscoroutinefunction(profiled)


def test_a_row_has_five_figures_and_waiting_counts():
    profiler = profiling()

    @profiler.profile_async
    async def work(seconds):
        await asyncio.sleep(seconds)

    async def main():
        await work(0.03)
        await work(0.0)

    asyncio.run(main())
    row = stats(profiler)["work"]
    assert list(row) == ["call_count", "total_time", "average_time", "min_time", "max_time"]
    assert row["call_count"] == 2
    assert row["max_time"] >= 0.03 > row["min_time"] >= 0
    assert row["total_time"] == pytest.approx(row["min_time"] + row["max_time"])
    assert row["average_time"] == row["total_time"] / 2


def test_a_failed_call_counts_and_its_error_passes():
    profiler = profiling()

    @profiler.profile_async
    async def fail():
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        asyncio.run(fail())
    assert stats(profiler)["fail"]["call_count"] == 1


def test_functions_of_one_name_share_a_row_and_rows_come_in_order_of_completion():
    profiler = profiling()

    def named(name):
        async def work(gate):
            await gate.wait()

        work.__name__ = name
        return profiler.profile_async(work)

    async def main():
        slow, quick = asyncio.Event(), asyncio.Event()
        waiting = asyncio.ensure_future(named("first")(slow))
        await asyncio.sleep(0)
        quick.set()
        await named("second")(quick)
        await named("second")(quick)
        slow.set()
        await waiting

    asyncio.run(main())
    assert {name: row["call_count"] for name, row in stats(profiler).items()} == {"second": 2, "first": 1}
    assert list(stats(profiler)) == ["second", "first"]


def test_whether_a_call_counts_is_decided_when_it_starts():
    profiler = PerformanceProfiler()

    @profiler.profile_async
    async def work(gate):
        await gate.wait()

    async def main():
        gate = asyncio.Event()
        before = asyncio.ensure_future(work(gate))
        await asyncio.sleep(0)
        profiler.start_profiling()
        counted = asyncio.ensure_future(work(gate))
        await asyncio.sleep(0)
        profiler.stop_profiling()
        after = asyncio.ensure_future(work(gate))
        gate.set()
        await asyncio.gather(before, counted, after)

    asyncio.run(main())
    assert stats(profiler)["work"]["call_count"] == 1


def test_start_clears_and_stop_keeps():
    profiler = profiling()
    asyncio.run(profiler.profile_async(asyncio.sleep)(0))
    assert profiler.stop_profiling() is None
    assert list(stats(profiler)) == ["sleep"]
    assert profiler.start_profiling() is None
    assert stats(profiler) == {}


def test_plain_functions_and_callables_without_a_name_are_counted():
    profiler = profiling()

    class Caller:
        def __call__(self, value):
            return value

    def double(value):
        return value * 2

    async def main():
        assert await profiler.profile_async(double)(4) == 8
        assert await profiler.profile_async(functools.partial(functools.partial(double), 5))() == 10
        assert await profiler.profile_async(lambda: asyncio.sleep(0, "awaited"))() == "awaited"
        assert await profiler.profile_async(Caller())(3) == 3

    asyncio.run(main())
    assert {name: row["call_count"] for name, row in stats(profiler).items()} == {
        "double": 2, "<lambda>": 1, "Caller": 1,
    }  # fmt: skip


def row(total=1.0, calls=1, average=0.5):
    return {"total_time": total, "call_count": calls, "average_time": average, "min_time": 0, "max_time": 0}


@pytest.mark.parametrize(
    ("calls", "average", "suggestions"),
    [
        (100, 1.0, []),
        (101, 1.0, ["Consider caching results"]),
        (100, 1.0001, ["Consider async/parallel processing"]),
        (101, 1.1, ["Consider caching results", "Consider async/parallel processing"]),
    ],
)
def test_suggestions_begin_beyond_their_limits(calls, average, suggestions):
    (entry,) = PerformanceProfiler().analyze_bottlenecks({"function_stats": {"f": row(2.0, calls, average)}})
    assert entry == {
        "function": "f", "impact_score": 1.0, "total_time": 2.0, "call_count": calls, "average_time": average,
        "optimization_suggestions": suggestions,
    }  # fmt: skip


def test_bottlenecks_come_by_total_time_with_ties_as_given():
    report = {"function_stats": {"a": row(1.0), "b": row(2.0), "c": row(1.0), "d": row(4.0)}}
    found = PerformanceProfiler().analyze_bottlenecks(report)
    assert [(entry["function"], entry["impact_score"]) for entry in found] == [
        ("d", 0.5), ("b", 0.25), ("a", 0.125), ("c", 0.125),
    ]  # fmt: skip


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_impact_scores_are_shares_of_the_whole(totals):
    report = {"function_stats": {str(place): row(total) for place, total in enumerate(totals)}}
    scores = [entry["impact_score"] for entry in PerformanceProfiler().analyze_bottlenecks(report)]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == (pytest.approx(1.0) if sum(totals) else 0)


def test_odd_reports_are_answered_as_ever():
    profiler = PerformanceProfiler()
    assert profiler.analyze_bottlenecks({}) == profiler.analyze_bottlenecks({"function_stats": {}}) == []
    assert profiler.analyze_bottlenecks({"function_stats": {"a": row(0)}})[0]["impact_score"] == 0
    for figure in ("total_time", "call_count", "average_time"):
        short = {key: value for key, value in row().items() if key != figure}
        with pytest.raises(KeyError, match=figure):
            profiler.analyze_bottlenecks({"function_stats": {"a": short}})


def test_a_profiler_is_a_prometheus_collector():
    from prometheus_client import CollectorRegistry, generate_latest

    profiler = profiling()
    asyncio.run(profiler.profile_async(asyncio.sleep)(0))
    registry = CollectorRegistry()
    registry.register(profiler)
    assert b'graft_profiled_seconds_count{function="sleep"} 1.0' in generate_latest(registry)


def test_the_workers_figures_have_a_report_of_their_own(stack):
    async def main():
        await AsyncWorkerOptimizer().optimize_batch_processing([0.02, 0.02], samples.sleep)
        return await profiling().get_worker_report()

    report = asyncio.run(main())
    figures = report["function_stats"]["tests.samples:sleep"]
    assert list(figures) == ["call_count", "total_time", "average_time", "errors_count"]
    assert figures["call_count"] >= 2
    assert figures["total_time"] >= 0.04
    assert "tests.samples:sleep" in [row["function"] for row in PerformanceProfiler().analyze_bottlenecks(report)]


def test_percentiles_stand_beside_the_report():
    profiler = PerformanceProfiler()
    pause = profiler.profile_async(asyncio.sleep)
    profiler.start_profiling()
    for seconds in [0.002] * 19 + [0.1]:
        asyncio.run(pause(seconds))
    spread = profiler.get_percentiles()["sleep"]
    assert list(spread) == ["p50_time", "p95_time", "p99_time"]
    assert 0.0019 < spread["p50_time"] <= spread["p95_time"] <= spread["p99_time"]
    assert spread["p99_time"] > 0.095
    profiler.start_profiling()
    assert profiler.get_percentiles() == {}
