"""Stages one after the other, all items of a stage at once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Unpack

from graft.compat import bridge
from graft.compat.placement import CallOptions, reference

MAX_CONCURRENT: Final = 1000  # In the cluster.
PER_ENVELOPE: Final = 20  # Items that one envelope of an async stage runs at once, at most.


class Pipeline:
    """Runs every item through all stages, with a barrier after each stage.

    Source: ``async_worker_optimization.Pipeline``. Differences: stages may be plain functions; a stage in the cluster
    runs a bounded number of items at once; ``get_metrics`` never divides by zero.

    Args:
        stages: the caller's own list; later changes to it take effect.
        max_concurrent: items of one stage that run at once. Default: 1000 in the whole cluster; unlimited for a stage
            that stays in this process.
        options: of each item in each stage, see :class:`CallOptions`.
    """

    def __init__(
        self,
        stages: Sequence[Callable[[Any], Any]],
        *,
        max_concurrent: int | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise ValueError(f"max_concurrent={max_concurrent} must be at least 1, or no item would ever start")
        self.stages = stages
        self.max_concurrent = max_concurrent
        self.options = options
        self.metrics: dict[str, Any] = {"items_processed": 0, "total_time": 0.0, "stage_times": defaultdict(float)}

    async def process(self, items: Any) -> Any:
        """The results of the last stage, a list in the order of *items*; without stages *items* itself.

        Raises:
            TypeError: *items* has no length; raised after the stages have run, as in the legacy module.
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
        concurrency, in_flight = self._fan_out(stage, len(values))
        return await bridge.map_async(
            stage, values, call="Pipeline.process", concurrency=concurrency, in_flight=in_flight, **self.options
        )

    def _fan_out(self, stage: Callable[[Any], Any], count: int) -> tuple[int, int]:
        """Items of one envelope that run at once, and envelopes at once: their product is exactly the limit."""
        if self.max_concurrent is None and reference(stage, self.options.get("place")) is None:
            return count, 1
        limit = self.max_concurrent or MAX_CONCURRENT
        per_envelope = next(size for size in range(min(limit, PER_ENVELOPE), 0, -1) if limit % size == 0)
        return per_envelope, limit // per_envelope

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
