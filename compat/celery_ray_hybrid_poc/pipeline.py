"""One value through a row of functions, each in Ray or on the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from graft.compat import bridge
from graft.compat.celery_ray_hybrid_poc import ray_side

if TYPE_CHECKING:
    from graft.compat.celery_ray_hybrid_poc.optimizer import HybridWorkerOptimizer


class AdaptivePipeline:
    """Stages that a value passes in their order.

    Source: ``celery_ray_hybrid_poc.AdaptivePipeline``.

    Attributes:
        stages: dicts with ``name``, ``func`` and ``use_ray``.
    """

    def __init__(self, optimizer: HybridWorkerOptimizer) -> None:
        self.optimizer = optimizer
        self.stages: list[dict[str, Any]] = []

    def add_stage(self, name: str, func: Callable[[Any], Any], use_ray: bool = False) -> Self:
        """Add a stage at the end; the pipeline itself, so that calls can be strung together."""
        if not callable(func):
            raise TypeError(f"func {func!r} of stage {name!r} cannot be called")
        self.stages.append({"name": name, "func": func, "use_ray": use_ray})
        return self

    async def execute(self, data: Any) -> Any:
        """*data* after the last stage; without stages, *data* itself.

        A stage runs on the workers (or here, where its function cannot leave); with *use_ray* in Ray, where that runs.

        Raises:
            Exception: a stage's own error; the stages after it do not run.
        """
        for stage in list(self.stages):
            if stage["use_ray"] and self.optimizer.ray_initialized:
                (data,) = await ray_side.map_async(stage["func"], [data])
            else:
                data = await bridge.call_async(stage["func"], data, call="AdaptivePipeline.execute")
        return data
