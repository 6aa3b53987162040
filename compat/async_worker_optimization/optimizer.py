"""AsyncWorkerOptimizer: batches, pipelines, resource pools, and the distribution of tasks to workers."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Unpack

from graft.compat import bridge, worker_admin
from graft.compat.async_worker_optimization import redis_records
from graft.compat.async_worker_optimization.data import WorkerMetrics
from graft.compat.async_worker_optimization.pipeline import Pipeline
from graft.compat.async_worker_optimization.resources import ResourcePool
from graft.compat.placement import CallOptions, reference

LOOK_FOR: Final = 0.25  # Seconds that a report waits for stats, which old code does not expect.


class AsyncWorkerOptimizer:
    """Applies functions to batches of items, and keeps pipelines and resource pools by name.

    Source: ``async_worker_optimization.AsyncWorkerOptimizer``.

    Attributes:
        metrics: the workers' stats by ``module:qualname``, over all callers. A call in the cluster fills in its own
            function, :meth:`load_metrics` all of them. Difference: the legacy module left it empty.
    """

    def __init__(self) -> None:
        self.logger = logging.getLogger("graft.compat.async_worker_optimization")
        self.pipelines: dict[str, Pipeline] = {}
        self.resource_pools: dict[str, ResourcePool] = {}
        self.metrics: defaultdict[str, WorkerMetrics] = defaultdict(WorkerMetrics)

    async def optimize_batch_processing(
        self,
        items: Any,
        task_func: Callable[[Any], Any],
        batch_size: int = 10,
        max_concurrent: int = 5,
        **options: Unpack[CallOptions],
    ) -> list[Any]:
        """Apply *task_func* to every item; a list with one result for each, in the order of *items*.

        Args:
            items: anything with a length that can be sliced. Empty input gives [], whatever *task_func* is.
            task_func: sync or async. Whether it runs on the workers or here is decided before anything is sent.
            batch_size: items that start together.
            max_concurrent: batches that run at once: ``batch_size * max_concurrent`` items in the whole cluster.
            options: ``place``, ``retry``, ``timeout`` and ``priority`` of each item, see :class:`CallOptions`.

        Raises:
            ValueError: *batch_size* below 1, *max_concurrent* below 0, or 0 with items.
            TypeError: *batch_size* is not an integer, *items* cannot be sliced, *task_func* cannot be called.
            BrokerUnavailable: the broker did not answer.
            Exception: the first error of an item, alone; the other items run to their end, unobserved.

        Differences: *task_func* may be sync; a *batch_size* below 0 (which dropped every item) and a *max_concurrent*
        of 0 (which waited for ever) are a ValueError.
        """
        batches = _cut(items, batch_size)
        if max_concurrent < 0 or (batches and max_concurrent == 0):
            raise ValueError(f"max_concurrent={max_concurrent} must be at least 1, or no batch would ever start")
        if not batches:
            return []
        if not callable(task_func):
            raise TypeError(f"task_func {task_func!r} cannot be called")
        call = bridge.map_async(
            task_func,
            list(itertools.chain.from_iterable(batches)),
            call="AsyncWorkerOptimizer.optimize_batch_processing",
            concurrency=batch_size,
            in_flight=math.ceil(min(max_concurrent, len(batches))),
            **options,
        )
        try:
            results = await call
        except Exception:
            await self._note_run(task_func, options)
            raise
        await self._note_run(task_func, options)
        return results

    async def _note_run(self, func: Callable[..., Any], options: CallOptions) -> None:
        if ref := reference(func, options.get("place")):
            self._fill(await asyncio.to_thread(_stats_soon, ref.name))

    def _fill(self, stats: Mapping[str, Mapping[str, float]]) -> None:
        for name, each in stats.items():
            self.metrics[name] = WorkerMetrics(
                tasks_processed=int(each["items"]),
                total_processing_time=each["seconds"],
                errors_count=int(each["errors"]),
                last_task_time=datetime.fromtimestamp(each["last"]) if each["last"] else None,
            )

    async def load_metrics(self) -> dict[str, WorkerMetrics]:
        """Fill :attr:`metrics` with the workers' stats of every function, and return it.

        Redis keeps the stats for 30 days, so a new process finds those of earlier ones. Without a broker, and in local
        mode, nothing changes.
        """
        self._fill(await asyncio.to_thread(worker_admin.function_stats))
        return self.metrics

    def setup_pipeline(
        self,
        stages: Sequence[Callable[[Any], Any]],
        *,
        max_concurrent: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Pipeline:
        """A :class:`Pipeline` over *stages*, registered in ``pipelines`` as ``pipeline_<n>``, the next free number.

        For *max_concurrent* and *options* see :class:`Pipeline`. Difference: after a deletion, the legacy module gave a
        live name out again, and lost that pipeline.
        """
        pipeline = Pipeline(stages, max_concurrent=max_concurrent, **options)
        names = (f"pipeline_{number}" for number in itertools.count(len(self.pipelines)))
        self.pipelines[next(name for name in names if name not in self.pipelines)] = pipeline
        return pipeline

    def manage_resource_pool(
        self, pool_name: str, config: Mapping[str, Any], *, worker_group: str | None = None
    ) -> ResourcePool:
        """A :class:`ResourcePool` from *config*, registered under *pool_name* in place of an earlier one.

        Args:
            pool_name: also the name of its record in Redis, which is written in the background where there is one.
            config: ``min_workers`` and ``max_workers``; ``scaling_factor`` (2.0) and ``idle_timeout`` (30 s).
            worker_group: bind the pool to the workers of this name, see :meth:`ResourcePool.bind`.

        Raises:
            KeyError: *config* lacks ``min_workers`` or ``max_workers``.
            ValueError: the figures cannot be those of a real pool.
        """
        pool = ResourcePool(
            pool_name,
            config["min_workers"],
            config["max_workers"],
            config.get("scaling_factor", 2.0),
            config.get("idle_timeout", 30),
        )
        self.resource_pools[pool_name] = pool
        return pool.record() if worker_group is None else pool.bind(worker_group)

    async def distribute_tasks(
        self, tasks: Iterable[Mapping[str, Any]], workers: Iterable[dict[str, Any]]
    ) -> dict[Any, int]:
        """Give each task, in order, to the least loaded worker: worker id to number of tasks, in order of first use.

        Args:
            tasks: each with a ``weight``.
            workers: each with ``id``, ``load`` and ``capacity``. Their ``load`` grows by weight / capacity in place, so
                that the next call goes on from there. :meth:`live_workers` makes such a list.

        Raises:
            IndexError: tasks, but no workers.
            ZeroDivisionError: a chosen worker's capacity is 0.
            KeyError: a figure is missing.
        """
        distribution: dict[Any, int] = {}
        ranking = sorted(workers, key=_load)
        for task in tasks:
            worker = ranking[0]
            worker["load"] += task["weight"] / worker["capacity"]
            distribution[worker["id"]] = distribution.get(worker["id"], 0) + 1
            ranking.sort(key=_load)  # Stable: equals keep the order of the previous ranking.
        return distribution

    async def live_workers(self) -> list[dict[str, Any]]:
        """The cluster's workers as :meth:`distribute_tasks` takes them.

        ``load`` is tasks active and reserved by capacity, ``capacity`` the number of pool processes.
        """
        return await asyncio.to_thread(worker_admin.worker_loads)

    def calculate_balance_score(
        self, distribution: Mapping[Any, int], workers: Sequence[Mapping[str, Any]], *, by_capacity: bool = False
    ) -> float:
        """How evenly the tasks are spread: 1 - population standard deviation / mean of the counts, cut to 0..1.

        The mean counts ids that are no worker, too. ``{}`` gives 0.0, counts that are all 0 give 1.0. Capacities are
        ignored unless *by_capacity*: then each worker's share is measured against its share of all capacity.

        Raises:
            ZeroDivisionError: no workers, but a distribution.
        """
        if not distribution:
            return 0.0
        counts = [distribution.get(worker["id"], 0) for worker in workers]
        weights = [worker["capacity"] if by_capacity else 1 for worker in workers]
        mean = sum(distribution.values()) / sum(weights)
        if mean == 0:
            return 1.0
        variance = sum(
            weight * (count / weight - mean) ** 2 for count, weight in zip(counts, weights, strict=True)
        ) / sum(weights)
        return float(max(0.0, min(1.0, 1 - math.sqrt(variance) / mean)))

    def profile_performance(self) -> dict[str, dict[str, Any]]:
        """``pipelines`` (name to their metrics), ``resource_pools`` (``active_workers``, ``utilization``) and
        ``overall_metrics``: the cluster's totals, and each function's stats under ``functions``.

        Difference: the legacy module left ``overall_metrics`` empty; without a broker or stats it is empty, too.
        """
        return {
            "pipelines": {name: pipeline.get_metrics() for name, pipeline in self.pipelines.items()},
            "resource_pools": {
                name: {"active_workers": pool.get_active_workers(), "utilization": pool.get_utilization()}
                for name, pool in self.resource_pools.items()
            },
            "overall_metrics": _totals(_stats_soon()),
        }


def _stats_soon(name: str | None = None) -> dict[str, dict[str, float]]:
    return redis_records.soon(functools.partial(worker_admin.function_stats, name), {}, within=LOOK_FOR)


def _cut(items: Any, batch_size: int) -> list[Any]:
    """Consecutive slices of *items*, the last one shorter."""
    if operator.index(batch_size) < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1, or no item would ever run")
    try:
        return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    except KeyError as error:  # A dict, from Python 3.12: slices became hashable.
        raise TypeError(f"items ({type(items).__name__}) cannot be sliced") from error


def _load(worker: Mapping[str, Any]) -> Any:
    return worker["load"]


def _totals(stats: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    if not stats:
        return {}
    items, seconds, errors = (sum(each[key] for each in stats.values()) for key in ("items", "seconds", "errors"))
    return {
        "tasks_processed": int(items),
        "total_processing_time": seconds,
        "average_processing_time": seconds / items if items else 0.0,
        "errors_count": int(errors),
        "functions": {name: dict(each) for name, each in stats.items()},
    }
