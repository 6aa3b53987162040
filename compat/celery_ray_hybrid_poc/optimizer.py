"""Chooses how a list of items is worked off: few as single tasks, many by the bulk engine or by Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from graft.compat import bridge
from graft.compat.celery_ray_hybrid_poc import ray_side
from graft.compat.placement import is_local, reference
from graft.tasks.legacy import ray_hybrid_poc
from graft.tasks.sending import by_task_name
from graft.tasks.submit import submit
from graft.tasks.worker_runtime import in_worker

if TYPE_CHECKING:
    from graft.compat.celery_ray_hybrid_poc.pipeline import AdaptivePipeline

PATIENCE: Final = 300.0
TOGETHER, IN_FLIGHT = 100, 64  # The bulk engine's bounds: coroutines at once in an envelope, envelopes at once.


@dataclass
class OptimizationResult:
    """What came of a hybrid call. ``processing_time`` is seconds; ``method`` names what ran: see the optimizer."""

    task_id: str
    processing_time: float
    method: str
    result: Any
    metrics: dict[str, Any]


class HybridWorkerOptimizer:
    """Applies one function to few items or to many, each the way that suits.

    Source: ``celery_ray_hybrid_poc.HybridWorkerOptimizer``.

    Args:
        use_ray: use Ray for many items; what ``GRAFT_RAY`` says unless given. Starts or joins Ray, which blocks.

    Attributes:
        ray_initialized: Ray is installed, switched on and running.

    Raises:
        ImportError: *use_ray* is True and Ray is not installed.
    """

    def __init__(self, *, use_ray: bool | None = None) -> None:
        self.logger = logging.getLogger("graft.compat.celery_ray_hybrid_poc")
        self.ray_initialized = ray_side.start(use_ray)

    async def optimize_with_ray(self, items: Sequence[Any], func: Callable[[Any], Any]) -> list[Any]:
        """Apply *func* to every item, in bulk: in Ray, else in envelopes on the workers. In the order of *items*.

        Raises:
            Exception: the first failing item's own error.
        """
        return (await self._in_bulk(list(items), func, 0))[1]

    def optimize_with_celery(self, items: Sequence[Any], task_name: str) -> list[Any]:
        """One task *task_name* for each item; their results in the order of *items*. Blocks up to 300 s.

        Raises:
            ValueError: ``Task <name> not found``.
            ResultTimeout: not all had ended after 300 s.
            Exception: the first failed task's own error.
        """
        task = by_task_name.find(task_name)
        if is_local():
            return [task(item) for item in items]
        return by_task_name.collect([by_task_name.send(task_name, [item]) for item in items], PATIENCE)

    async def hybrid_optimization(
        self,
        items: Sequence[Any],
        threshold: int = 100,
        *,
        func: Callable[[Any], Any] | None = None,
        priority: float = 0,
    ) -> OptimizationResult:
        """Apply one function to every item: below *threshold* as one task each, from it on in bulk.

        Returns an OptimizationResult whose ``result`` is the list in the order of *items*, and whose ``method`` is
        "ray", "celery" (single tasks and the bulk engine alike), or "local" where *func* holds state of its caller's
        and so stays with it. ``metrics``: ``items_count``, ``avg_time_per_item`` (s; 0.0 without items) and
        ``memory_usage`` (MB of this process).

        Args:
            func: what is applied, the same at any size; what the task ``process_small_batch`` does unless given.
            priority: larger goes first; Ray has no priorities.

        Raises:
            Exception: the first failing item's own error.

        Difference: the function changed with the number of items, and none at all was a ZeroDivisionError.
        """
        began = time.perf_counter()
        items, func = list(items), func or ray_hybrid_poc.stamp
        if len(items) < threshold:
            method, values = await self._one_by_one(items, func, priority)
        else:
            method, values = await self._in_bulk(items, func, priority)
        seconds = time.perf_counter() - began
        figures = ray_hybrid_poc.figures(len(items), seconds)
        return OptimizationResult(ray_hybrid_poc.new_job_id(), seconds, method, values, figures)

    def create_adaptive_pipeline(self) -> AdaptivePipeline:
        from graft.compat.celery_ray_hybrid_poc.pipeline import AdaptivePipeline

        return AdaptivePipeline(self)

    async def _one_by_one(self, items: list[Any], func: Callable[[Any], Any], priority: float) -> tuple[str, list[Any]]:
        if _stays_here(func):
            return await self._here(items, func)
        batch = submit(func, items, batch_size=1, priority=priority)
        try:
            values: list[Any] = await batch
        except asyncio.CancelledError:
            batch.cancel()
            raise
        return "celery", values

    async def _in_bulk(self, items: list[Any], func: Callable[[Any], Any], priority: float) -> tuple[str, list[Any]]:
        if self.ray_initialized:
            return "ray", await ray_side.map_async(func, items)
        if _stays_here(func):
            return await self._here(items, func)
        return "celery", await bridge.map_async(
            func,
            items,
            call="HybridWorkerOptimizer.hybrid_optimization",
            concurrency=TOGETHER,
            in_flight=IN_FLIGHT,
            priority=priority,
        )

    async def _here(self, items: list[Any], func: Callable[[Any], Any]) -> tuple[str, list[Any]]:
        return "local", await bridge.map_async(
            func,
            items,
            call="HybridWorkerOptimizer.hybrid_optimization",
            concurrency=TOGETHER,
            in_flight=1,
            place="local",
        )


def _stays_here(func: Callable[[Any], Any]) -> bool:
    """Rule R2: it cannot leave its caller, or a task calls, which must not wait for others."""
    return in_worker() or reference(func, None) is None
