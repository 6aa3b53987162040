"""The demonstration of the hybrid: 50 items, 500 items, and the ways compared."""

from __future__ import annotations

import asyncio

from graft.compat.celery_ray_hybrid_poc.comparator import PerformanceComparator
from graft.compat.celery_ray_hybrid_poc.optimizer import HybridWorkerOptimizer


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
