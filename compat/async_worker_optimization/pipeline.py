"""Stages one after the other, all items of a stage at once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from graft.compat import bridge
from graft.compat.placement import Where, reference
from graft.tasks.policy import RetryPolicy

MAX_CONCURRENT: Final = 1000  # In the cluster.
LANE: Final = 20  # Items that one envelope of an async stage runs at once, at most.


class Pipeline:
    """Runs every item through all stages, with a barrier after each stage.

    Source: ``async_worker_optimization.Pipeline``. Differences: stages may be plain functions; a stage in the cluster
    runs a bounded number of items at once; ``get_metrics`` never divides by zero.

    Args:
        stages: the caller's own list: later changes to it take effect.
        max_concurrent: items of one stage running at once. Unless given, 1000 in the whole cluster, and all of them
            where a stage stays with the caller.
        retry: a RetryPolicy or a number of retries, for each item in each stage.
        place: "cluster" or "local" instead of what each stage would choose.
    """

    def __init__(
        self,
        stages: Sequence[Callable[[Any], Any]],
        *,
        max_concurrent: int | None = None,
        retry: RetryPolicy | int | None = None,
        place: Where | None = None,
    ) -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent={max_concurrent} must be at least 1, or no item would ever start")
        self.stages = stages
        self.max_concurrent = max_concurrent
        self.retry = retry
        self.place = place
        self.metrics: dict[str, Any] = {"items_processed": 0, "total_time": 0.0, "stage_times": defaultdict(float)}

    async def process(self, items: Any) -> Any:
        """The results of the last stage, a list in the order of *items*; without stages *items* itself.

        Raises:
            TypeError: *items* has no length, told after they went through the stages, as ever.
            Exception: the first error of a stage. Its other items go on; later stages do not start, and only finished
                stages have added their time to the metrics.
        """
        began = time.perf_counter()
        results = items
        for number, stage in enumerate(self.stages):
            stage_began = time.perf_counter()
            results = await self._pass(stage, results)
            self.metrics["stage_times"][f"stage_{number}"] += time.perf_counter() - stage_began
        count = len(items)
        self.metrics["items_processed"] += count
        self.metrics["total_time"] += time.perf_counter() - began
        return results

    async def _pass(self, stage: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        values = list(items)
        if not values:
            return []
        if not callable(stage):
            raise TypeError(f"the stage {stage!r} cannot be called")
        lane, lanes = self._fan_out(stage, len(values))
        return await bridge.map_async(
            stage,
            values,
            call="Pipeline.process",
            concurrency=lane,
            in_flight=lanes,
            place=self.place,
            retry=self.retry,
        )

    def _fan_out(self, stage: Callable[[Any], Any], count: int) -> tuple[int, int]:
        """Items of one envelope that run at once, and envelopes at once: their product is the bound, exactly."""
        if self.max_concurrent is None and reference(stage, self.place) is None:
            return count, 1
        bound = self.max_concurrent or MAX_CONCURRENT
        lane = next(lane for lane in range(min(bound, LANE), 0, -1) if bound % lane == 0)
        return lane, bound // lane

    def get_metrics(self) -> dict[str, Any]:
        """``throughput`` (items/s), ``average_latency`` (total seconds / items) and ``stage_times`` (seconds).

        Zeros before anything was processed.
        """
        count, seconds = self.metrics["items_processed"], self.metrics["total_time"]
        is_measured = count > 0 and seconds > 0
        return {
            "throughput": count / seconds if is_measured else 0.0,
            "average_latency": seconds / count if is_measured else 0.0,
            "stage_times": dict(self.metrics["stage_times"]),
        }
