"""A pool that marks items as processed: an actor in Ray, or the bulk engine behind the same methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft.compat.celery_ray_hybrid_poc import ray_side
from graft.compat.dispatcher import CallDispatcher


def mark(item: Any) -> dict[str, Any]:
    return {"item": item, "processed": True}


class _Members:
    """The Ray actor's class."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processed = 0

    def process_batch(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        marked = [mark(item) for item in items]
        self.processed += len(marked)
        return marked

    def get_stats(self) -> dict[str, int]:
        return {"pool_size": self.size, "tasks_processed": self.processed}


class RayWorkerPool:
    """Processes batches in a Ray actor if Ray is switched on, else on the workers, *size* envelopes at once.

    Source: ``celery_ray_hybrid_poc.RayWorkerPool``, which was a decorated class: :meth:`remote` still gives the bare
    actor. Both methods block.

    Attributes:
        actor: the Ray actor, or None.

    Raises:
        ValueError: *size* is below 1.
        ImportError: *use_ray* is True and Ray is not installed.
    """

    def __init__(self, size: int = 4, *, use_ray: bool | None = None) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self.size = size
        self.actor = ray_side.actor(_Members, size) if ray_side.start(use_ray) else None
        self._dispatcher = CallDispatcher(size)
        self._processed = 0

    @staticmethod
    def remote(size: int = 4) -> Any:
        """The actor itself, for ``pool.process_batch.remote(items)``; switches Ray on.

        Raises:
            ImportError: Ray is not installed.
        """
        return RayWorkerPool(size, use_ray=True).actor

    def process_batch(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """``{"item": item, "processed": True}`` for every item, in order."""
        items = list(items)
        if self.actor is not None:
            return list(ray_side.get(self.actor.process_batch.remote(items)))
        route = self._dispatcher.route(mark, call="RayWorkerPool.process_batch", is_map=True)
        marked: list[dict[str, Any]] = self._dispatcher.map(route, items, unpack=False).collect()
        self._processed += len(marked)
        return marked

    def get_stats(self) -> dict[str, int]:
        """``pool_size``, and ``tasks_processed``: items so far."""
        if self.actor is not None:
            return dict(ray_side.get(self.actor.get_stats.remote()))
        return {"pool_size": self.size, "tasks_processed": self._processed}
