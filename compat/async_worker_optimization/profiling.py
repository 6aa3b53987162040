"""The profiler measures awaited calls of this process, and names the bottlenecks."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from graft.compat import worker_admin
from graft.compat.local import awaited
from graft.tasks import blocking_threads
from graft.tasks.monitoring.durations import SHOWN, Durations

if TYPE_CHECKING:
    from prometheus_client import Metric

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Calls:
    """The calls of one name; times are seconds."""

    count: int = 0
    total: float = 0.0
    shortest: float = float("inf")
    longest: float = 0.0
    each: Durations = field(default_factory=Durations)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.each.add(seconds)
        self.total += seconds
        self.shortest = min(self.shortest, seconds)
        self.longest = max(self.longest, seconds)

    def row(self) -> dict[str, Any]:
        return {
            "call_count": self.count,
            "total_time": self.total,
            "average_time": self.total / self.count,
            "min_time": self.shortest,
            "max_time": self.longest,
        }


class PerformanceProfiler:
    """Measures the wall time of decorated functions while it is switched on.

    A profiler is a Prometheus collector, too: ``prometheus_client.REGISTRY.register(profiler)`` exports its figures.

    Source: ``async_worker_optimization.PerformanceProfiler``. Differences: plain functions can be decorated; a
    callable without ``__name__`` is counted under the name of what it wraps, or of its class.
    """

    def __init__(self) -> None:
        self._is_on = False
        self._calls: dict[str, _Calls] = {}

    def start_profiling(self) -> None:
        """Count calls that start from now on; earlier figures are dropped."""
        self._is_on = True
        self._calls.clear()

    def stop_profiling(self) -> None:
        """Count no more calls; the figures stay. A call that runs is still counted."""
        self._is_on = False

    def profile_async(self, func: Callable[P, Awaitable[T] | T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """*func* as a coroutine function whose calls are counted under its ``__name__``, failed ones like others."""
        name = _name_of(func)

        @functools.wraps(func)
        async def profiled(*args: P.args, **kwargs: P.kwargs) -> T:
            is_counted, began = self._is_on, time.perf_counter()
            try:
                value: T = await awaited(func(*args, **kwargs))
                return value
            finally:
                if is_counted:
                    self._calls.setdefault(name, _Calls()).add(time.perf_counter() - began)

        return profiled

    def get_profile_report(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``function_stats``: by name, in the order of first completion, the five figures in seconds."""
        return {"function_stats": {name: calls.row() for name, calls in self._calls.items()}}

    def get_percentiles(self) -> dict[str, dict[str, float]]:
        """New: by name, in the same order, ``p50_time``, ``p95_time`` and ``p99_time`` in seconds, to 5 %.

        They are no part of the report, whose rows have five figures.
        """
        return {
            name: {f"p{percent}_time": calls.each.percentile(percent) for percent in SHOWN}
            for name, calls in self._calls.items()
        }

    def analyze_bottlenecks(self, profile_data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The functions of a report by their total time, the longest first, with suggestions.

        ``impact_score`` is the function's share of all total times, from 0 to 1.

        Raises:
            KeyError: a row lacks ``total_time``, ``call_count`` or ``average_time``.
        """
        rows = profile_data.get("function_stats", {})
        everything = sum(row["total_time"] for row in rows.values())
        return [
            {
                "function": name,
                "impact_score": row["total_time"] / everything if everything else 0.0,
                "total_time": row["total_time"],
                "call_count": row["call_count"],
                "average_time": row["average_time"],
                "optimization_suggestions": _suggestions(row),
            }
            for name, row in sorted(rows.items(), key=lambda entry: entry[1]["total_time"], reverse=True)
        ]

    async def get_worker_report(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The same kind of report over all workers since they first ran each function, kept in Redis.

        A row has ``call_count``, ``total_time``, ``average_time`` and ``errors_count``; :meth:`analyze_bottlenecks`
        takes it. Without a broker it is empty.
        """
        stats = await blocking_threads.ask(worker_admin.function_stats)
        return {
            "function_stats": {
                name: {
                    "call_count": int(each["items"]),
                    "total_time": each["seconds"],
                    "average_time": each["seconds"] / each["items"] if each["items"] else 0.0,
                    "errors_count": int(each["errors"]),
                }
                for name, each in stats.items()
            }
        }

    def collect(self) -> Iterator[Metric]:
        """The present figures for Prometheus: calls and seconds by function."""
        from prometheus_client.core import SummaryMetricFamily

        family = SummaryMetricFamily(
            "graft_profiled_seconds", "Wall time of profiled calls in this process.", labels=["function"]
        )
        for name, calls in self._calls.items():
            family.add_metric([name], count_value=calls.count, sum_value=calls.total)
        yield family


def _name_of(func: Callable[..., Any]) -> str:
    """``__name__``, through partials; a callable object goes by its class."""
    while isinstance(func, functools.partial):
        func = func.func
    return str(getattr(func, "__name__", type(func).__name__))


def _suggestions(row: Mapping[str, Any]) -> list[str]:
    suggestions = []
    if row["call_count"] > 100:
        suggestions.append("Consider caching results")
    if row["average_time"] > 1.0:
        suggestions.append("Consider async/parallel processing")
    return suggestions
