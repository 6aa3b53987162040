"""The comparison of single tasks, bulk and hybrid, and the demonstration."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from graft.compat.celery_ray_hybrid_poc.optimizer import HybridWorkerOptimizer
from graft.tasks.legacy import ray_hybrid_poc
from graft.tasks.monitoring.durations import SHOWN


class PerformanceComparator:
    """Runs the same items as single tasks, in bulk, and as the hybrid chooses.

    Source: ``celery_ray_hybrid_poc.PerformanceComparator``. *optimizer* is new. Default: an optimizer of its own.

    Attributes:
        results: the latest measurements of :meth:`compare_methods`.
        percentiles: new: for each way of ``results`` ``p50_time``, ``p95_time`` and ``p99_time`` of its iterations (s).
    """

    def __init__(self, optimizer: HybridWorkerOptimizer | None = None) -> None:
        self.optimizer = optimizer or HybridWorkerOptimizer()
        self.results: dict[str, dict[str, Any]] = {}
        self.percentiles: dict[str, dict[str, float]] = {}

    async def compare_methods(self, items: Sequence[Any], iterations: int = 3) -> dict[str, dict[str, Any]]:
        """For ``celery``, ``ray`` and ``hybrid``: ``method``, ``avg_time`` (s), ``items_count``, ``throughput`` (1/s).

        ``method`` names what ran: without Ray the row ``ray`` says "celery", for the bulk engine.

        Raises:
            ValueError: *iterations* is below 1.
        """
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        items = list(items)
        optimizer = self.optimizer

        async def single() -> str:
            await asyncio.to_thread(optimizer.optimize_with_celery, items, "process_small_batch")
            return "celery"

        async def bulk() -> str:
            await optimizer.optimize_with_ray(items, ray_hybrid_poc.stamp)
            return "ray" if optimizer.ray_initialized else "celery"

        async def hybrid() -> str:
            return (await optimizer.hybrid_optimization(items)).method

        ways = {"celery": single, "ray": bulk, "hybrid": hybrid}
        measured = {name: await _measured(way, len(items), iterations) for name, way in ways.items()}
        self.results = {name: row for name, (row, _) in measured.items()}
        self.percentiles = {
            name: {f"p{percent}_time": _percentile(times, percent) for percent in SHOWN}
            for name, (_, times) in measured.items()
        }
        return self.results

    def print_comparison(self) -> None:
        """Print the latest measurements, one line for each way."""
        print(f"{'way':<8} {'ran as':<8} {'seconds':>10} {'items':>8} {'items/s':>12} {'median':>10} {'95 %':>10}")
        for name, row in self.results.items():
            figures = f"{row['avg_time']:>10.4f} {row['items_count']:>8} {row['throughput']:>12.1f}"
            spread = self.percentiles[name]
            print(f"{name:<8} {row['method']:<8} {figures} {spread['p50_time']:>10.4f} {spread['p95_time']:>10.4f}")


async def _measured(
    way: Callable[[], Awaitable[str]], items: int, iterations: int
) -> tuple[dict[str, Any], list[float]]:
    """The row of one way, and the seconds of each iteration."""
    times: list[float] = []
    for _ in range(iterations):
        began = time.perf_counter()
        method = await way()
        times.append(time.perf_counter() - began)
    seconds = sum(times) / iterations
    row = {
        "method": method,
        "avg_time": seconds,
        "items_count": items,
        "throughput": items / seconds if seconds else 0.0,
    }
    return row, times


def _percentile(times: Sequence[float], percent: float) -> float:
    """The least of *times* that *percent* of them do not exceed."""
    return sorted(times)[max(0, math.ceil(percent / 100 * len(times)) - 1)]


def demo_hybrid_optimization() -> None:
    """Process 50 and 500 items on the deployment's workers, compare the ways, and print what was measured."""
    asyncio.run(_demo())


async def _demo() -> None:
    optimizer = await asyncio.to_thread(HybridWorkerOptimizer)
    for number in (50, 500):
        outcome = await optimizer.hybrid_optimization([{"id": each} for each in range(number)])
        print(f"{number} items: {outcome.method}, {len(outcome.result)} results in {outcome.processing_time:.3f} s")
    comparator = PerformanceComparator(optimizer)
    await comparator.compare_methods([{"id": each} for each in range(50)])
    comparator.print_comparison()
