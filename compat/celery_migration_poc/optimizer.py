"""The optimizer of the proof of concept, also behind the older optimizer's interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Unpack

from celery import chain

from graft.compat.async_worker_optimization import AsyncWorkerOptimizer
from graft.compat.async_worker_optimization.data import LoadLevel
from graft.compat.async_worker_optimization.resources import SIZES
from graft.compat.celery_migration_poc import balancing, resource_pool
from graft.compat.placement import CallOptions
from graft.config.redis_client import shared
from graft.tasks.legacy import migration_poc, migration_poc_metrics
from graft.tasks.queues import depth
from graft.tasks.sending import by_task_name

DEMO_TIMEOUT: Final = 60.0

logger = logging.getLogger("graft.compat.celery_migration_poc")


class CeleryWorkerOptimizer:
    """Batches, chains, resource pools and load levels on the deployment's workers.

    Source: ``celery_migration_poc.CeleryWorkerOptimizer``. All methods but :meth:`optimize_batch_processing` block for
    a round trip or more: in a coroutine call them through ``asyncio.to_thread``.

    Attributes:
        redis_client: this deployment's Redis.
        metrics: see ``AsyncWorkerOptimizer.metrics``.
    """

    def __init__(self) -> None:
        self.logger = logger
        self.redis_client = shared()
        self._batches = AsyncWorkerOptimizer()
        self.metrics = self._batches.metrics

    async def optimize_batch_processing(
        self,
        items: Sequence[Any],
        batch_size: int = 10,
        max_concurrent: int = 5,
        **options: Unpack[CallOptions],
    ) -> list[dict[str, Any]]:
        """Apply the function of the task ``process_item`` to every item; the results in the order of *items*.

        An item's error is raised at once; the 60 s retries belong to the task. Errors and limits are those of
        ``AsyncWorkerOptimizer.optimize_batch_processing``. Differences: nothing blocks the event loop; *max_concurrent*
        is honoured; the *options* (see :class:`CallOptions`) are new.
        """
        return await self._batches.optimize_batch_processing(
            items, migration_poc.process, batch_size, max_concurrent, **options
        )

    def setup_pipeline(self, stages: Sequence[str]) -> Any:
        """A Celery chain of the tasks named in *stages*: ``.delay(item)`` it; each result is the next one's input.

        Raises:
            ValueError: no task of that name, or no stage at all. Difference: unknown names were skipped.
        """
        if not stages:
            raise ValueError("stages is empty; a chain needs at least one task")
        return chain(*(by_task_name.find(name).s() for name in stages))

    def create_resource_pool(self, name: str, size: int = 10) -> None:
        """Keep *size* units under *name*, in the Redis hash ``resource_pool:<name>``.

        Fields: ``size``, ``available``, ``created_at``. Made again, the pool gets the new size; units in use stay so.

        Raises:
            ValueError: *size* is no whole number of at least 1.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r} must be a whole number of at least 1")
        resource_pool.run(self.redis_client, "make", name, size, datetime.now(UTC).isoformat())

    def take_unit(self, name: str) -> bool:
        """Take a unit of the pool, atomically; False when none is free.

        Raises:
            KeyError: there is no such pool.
        """
        return resource_pool.run(self.redis_client, "take", name)

    def give_unit_back(self, name: str) -> None:
        """Give a unit back.

        Raises:
            KeyError: there is no such pool.
            ValueError: no unit was taken.
        """
        if not resource_pool.run(self.redis_client, "give_back", name):
            raise ValueError(f"every unit of the resource pool {name!r} is free; none was taken")

    def get_worker_metrics(self) -> dict[str, Any]:
        """``workers`` and ``active_tasks`` by node name, ``queue_lengths`` by queue, ``timestamp``.

        The first two are {} without workers. A queue's length is that of all its priorities; messages that workers have
        fetched are counted by :meth:`unacknowledged`.
        """
        return migration_poc_metrics.measure()

    def unacknowledged(self) -> int:
        """Messages of all queues that workers have fetched and not yet finished."""
        return depth.unacked()

    def stored_metrics(self, limit: int = 60) -> list[dict[str, Any]]:
        """The metrics that ``collect_metrics`` has stored, newest first, for up to a day."""
        return migration_poc_metrics.kept(limit)

    def dynamic_load_balancing(
        self, load_level: Any, *, worker_group: str | None = None, timeout: float = 30.0
    ) -> dict[str, Any]:
        """Give every prefork worker the pool processes and the prefetch of *load_level*; ``SIZES`` has the figures.

        Returns, once each worker has exactly so many processes: ``load_level`` (its value), ``settings``
        (``concurrency``, and ``prefetch``: messages fetched for each process) and ``applied_at`` (ISO, UTC).

        Args:
            load_level: a LoadLevel or its value; anything else counts as MEDIUM, with a warning in the log.
            worker_group: only the workers named ``<worker_group>@…`` or ``<worker_group>1@…``.
            timeout: seconds; busy processes end when they have finished.

        Raises:
            TaskQueueError: no such worker is alive, or one did not reach the size in time.

        Difference: the legacy module only added processes, and did not change the prefetch.
        """
        level = _level(load_level)
        size = SIZES[level]
        balancing.reach(size, worker_group, timeout)
        return {
            "load_level": level.value,
            "settings": {"concurrency": size.processes, "prefetch": size.prefetch},
            "applied_at": datetime.now(UTC).isoformat(),
        }


def demo_celery_usage() -> None:
    """Run one item, a batch of 10 and a chain on the deployment's workers, and print the results.

    Raises:
        ResultTimeout: no worker answered within a minute.
        BrokerUnavailable: the broker did not answer.
    """
    optimizer = CeleryWorkerOptimizer()
    one = by_task_name.send("process_item", [{"id": "one"}])
    print(f"one item   {by_task_name.collect([one], DEMO_TIMEOUT)[0]}")
    results = asyncio.run(optimizer.optimize_batch_processing([{"id": number} for number in range(10)]))
    print(f"a batch    {len(results)} results, ids {[result['id'] for result in results]}")
    last = optimizer.setup_pipeline(["process_item", "heavy_computation"]).delay({"id": "chained"})
    print(f"a chain    {by_task_name.collect([last.id], DEMO_TIMEOUT)[0]}")
    metrics = optimizer.get_worker_metrics()
    print(f"workers    {', '.join(metrics['workers']) or 'none'}")
    print(f"waiting    {metrics['queue_lengths']}")


def _level(asked: Any) -> LoadLevel:
    try:
        return LoadLevel(asked)
    except ValueError:
        known = ", ".join(repr(level.value) for level in LoadLevel)
        logger.warning(
            "the load level %r is none of %s, and counts as %r%s", asked, known, LoadLevel.MEDIUM.value, _meant(asked)
        )
        return LoadLevel.MEDIUM


def _meant(asked: Any) -> str:
    """A hint for a level in other letters: "HIGH" is a member's name, not its value."""
    level = LoadLevel.__members__.get(asked.strip().upper()) if isinstance(asked, str) else None
    return f"; write {level.value!r} or {level}" if level else ""


class AsyncWorkerOptimizationCompat(AsyncWorkerOptimizer):
    """All of ``AsyncWorkerOptimizer``, with the proof of concept's resource pools beside.

    Source: ``celery_migration_poc.AsyncWorkerOptimizationCompat``. Difference: the caller's functions run; they were
    replaced by ``process_item``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.celery_optimizer = CeleryWorkerOptimizer()

    async def optimize_batch_processing(
        self,
        items: Any,
        task_func: Callable[[Any], Any] | None,
        batch_size: int = 10,
        max_concurrent: int = 5,
        **options: Any,
    ) -> list[Any]:
        """As ``AsyncWorkerOptimizer.optimize_batch_processing``; None for *task_func* means ``process_item``."""
        func = migration_poc.process if task_func is None else task_func
        return await super().optimize_batch_processing(items, func, batch_size, max_concurrent, **options)

    def create_resource_pool(self, name: str, size: int = 10) -> None:
        """As ``CeleryWorkerOptimizer.create_resource_pool``."""
        self.celery_optimizer.create_resource_pool(name, size)
