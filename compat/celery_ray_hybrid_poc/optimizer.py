"""Few items run as single tasks, many in bulk or in Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from graft.compat import bridge
from graft.compat.celery_ray_hybrid_poc import ray_side
from graft.compat.placement import is_local, place_calls
from graft.tasks.legacy import ray_hybrid_poc
from graft.tasks.sending import by_task_name

PATIENCE: Final = 300.0
TOGETHER, IN_FLIGHT = 100, 64  # The bulk engine's bounds: coroutines at once in an envelope, envelopes at once.


@dataclass
class OptimizationResult:
    """The result of a hybrid call. ``processing_time`` is seconds; ``method`` names what ran: see the optimizer."""

    task_id: str
    processing_time: float
    method: str
    result: Any
    metrics: dict[str, Any]


class HybridWorkerOptimizer:
    """Applies one function to items: to few as single tasks, to many in bulk.

    Source: ``celery_ray_hybrid_poc.HybridWorkerOptimizer``.

    Args:
        use_ray: use Ray for many items. Default: what ``GRAFT_RAY`` says. Starts or joins Ray, which blocks.

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

        ``result`` is the list in the order of *items*. ``method`` is "ray", "celery" (single tasks and bulk alike), or
        "local" if *func* cannot leave this process. ``metrics``: ``items_count``, ``avg_time_per_item`` (s; 0.0 without
        items) and ``memory_usage`` (MB of this process).

        Args:
            func: the same at any size. Default: what the task ``process_small_batch`` does.
            priority: larger goes first; Ray has no priorities.

        Raises:
            Exception: the first failing item's own error.

        Difference: the function changed with the number of items, and none at all was a ZeroDivisionError.
        """
        began = time.perf_counter()
        items, func = list(items), func or ray_hybrid_poc.stamp
        if len(items) < threshold:
            method, values = await self._map(items, func, priority, batch_size=1)
        else:
            method, values = await self._in_bulk(items, func, priority)
        seconds = time.perf_counter() - began
        figures = ray_hybrid_poc.figures(len(items), seconds)
        return OptimizationResult(ray_hybrid_poc.new_job_id(), seconds, method, values, figures)

    def create_adaptive_pipeline(self) -> AdaptivePipeline:
        return AdaptivePipeline(self)

    async def _in_bulk(self, items: list[Any], func: Callable[[Any], Any], priority: float) -> tuple[str, list[Any]]:
        if self.ray_initialized:
            return "ray", await ray_side.map_async(func, items)
        return await self._map(items, func, priority)

    async def _map(
        self, items: list[Any], func: Callable[[Any], Any], priority: float, batch_size: int | None = None
    ) -> tuple[str, list[Any]]:
        stays = place_calls(func).function is None
        values = await bridge.map_async(
            func,
            items,
            call="HybridWorkerOptimizer.hybrid_optimization",
            concurrency=TOGETHER,
            in_flight=1 if stays else IN_FLIGHT,
            batch_size=batch_size,
            priority=priority,
        )
        return "local" if stays else "celery", values


class AdaptivePipeline:
    """Stages that one value passes in order, each in Ray or on the workers.

    Source: ``celery_ray_hybrid_poc.AdaptivePipeline``.

    Attributes:
        stages: dicts with ``name``, ``func`` and ``use_ray``.
    """

    def __init__(self, optimizer: HybridWorkerOptimizer) -> None:
        self.optimizer = optimizer
        self.stages: list[dict[str, Any]] = []

    def add_stage(self, name: str, func: Callable[[Any], Any], use_ray: bool = False) -> Self:
        """Add a stage at the end; returns the pipeline itself, so calls can be chained."""
        if not callable(func):
            raise TypeError(f"func {func!r} of stage {name!r} cannot be called")
        self.stages.append({"name": name, "func": func, "use_ray": use_ray})
        return self

    async def execute(self, data: Any) -> Any:
        """*data* after the last stage; without stages, *data* itself.

        A stage runs on the workers, or in this process if its function cannot travel; with *use_ray* in Ray, if that
        runs.

        Raises:
            Exception: a stage's own error; the stages after it do not run.
        """
        for stage in list(self.stages):
            if stage["use_ray"] and self.optimizer.ray_initialized:
                (data,) = await ray_side.map_async(stage["func"], [data])
            else:
                data = await bridge.call_async(stage["func"], data, call="AdaptivePipeline.execute")
        return data
