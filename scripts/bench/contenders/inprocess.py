"""Without any broker: the standard library's pools, joblib, and one event loop as the old optimizer had it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from graft.scripts.bench.contenders.base import Contender, callable_of
from graft.scripts.bench.contenders.sweep import best, sizes


class ProcessPool(Contender):
    """``concurrent.futures.ProcessPoolExecutor``; maps with the best chunk size."""

    name = "ppe"
    title = "ProcessPoolExecutor (no broker)"
    shapes = frozenset({"batch", "singles", "submit", "latency", "pool"})
    functions = frozenset({"noop", "spin", "pause"})
    chunk = 1

    def open(self) -> None:
        self.pool = ProcessPoolExecutor(self.setup.concurrency)
        list(self.pool.map(abs, range(self.setup.concurrency * 2)))

    def close(self) -> None:
        self.pool.shutdown()

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        found = sizes(len(items), self.setup.concurrency)
        self.chunk = batch_size or best(found, lambda size: self._map(function, items, size))

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self._map(function, items, self.chunk)

    def _map(self, function: str, items: Sequence[Any], chunk: int) -> list[Any]:
        return list(self.pool.map(callable_of(function), items, chunksize=chunk))

    def submit(self, function: str, item: Any) -> Future[Any]:
        return self.pool.submit(callable_of(function), item)

    def gather(self, handles: Sequence[Future[Any]]) -> list[Any]:
        return [handle.result() for handle in handles]


class MultiprocessingPool(ProcessPool):
    """``multiprocessing.Pool``; maps with the best chunk size."""

    name = "mp"
    title = "multiprocessing.Pool (no broker)"
    shapes = frozenset({"batch", "singles", "submit", "latency"})

    def open(self) -> None:
        self.processes = multiprocessing.Pool(self.setup.concurrency)

    def close(self) -> None:
        self.processes.terminate()
        self.processes.join()

    def _map(self, function: str, items: Sequence[Any], chunk: int) -> list[Any]:
        return self.processes.map(callable_of(function), items, chunksize=chunk)

    def submit(self, function: str, item: Any) -> Any:
        return self.processes.apply_async(callable_of(function), (item,))

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get() for handle in handles]


class Joblib(Contender):
    """joblib's loky processes with automatic batches."""

    name = "joblib"
    title = "joblib/loky (no broker)"
    needs = ("joblib",)
    shapes = frozenset({"batch"})

    def open(self) -> None:
        import joblib  # type: ignore[import-untyped]

        self.parallel = joblib.Parallel(n_jobs=self.setup.concurrency)
        self.parallel.__enter__()
        self.delayed = joblib.delayed

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)
        from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

        get_reusable_executor().shutdown(wait=True)

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        target = self.delayed(callable_of(function))
        found: list[Any] = self.parallel(target(item) for item in items)
        return found


class OneByOne(Contender):
    """No pool at all: one task after the other in the caller, as the old figures for pools compare themselves with."""

    name = "one-by-one"
    title = "one after the other, in the caller"
    shapes = frozenset({"pool"})
    functions = frozenset({"noop", "spin", "pause"})

    def pooled(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        call = callable_of(function)
        return [call(item) for item in items]


class PlainAsyncio(Contender):
    """One event loop in the caller's own process, as the old code had it: ten items a batch, five batches at once."""

    name = "asyncio"
    title = "plain asyncio, in the caller (old behaviour)"
    shapes = frozenset({"batch", "bounded"})
    functions = frozenset({"noop", "spin", "nap", "anoop"})

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self.bounded(function, items, 50)

    def bounded(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        return asyncio.run(self._run(callable_of(function), items, at_once))

    async def _run(self, function: Any, items: Sequence[Any], at_once: int) -> list[Any]:
        batch_size = 10
        permits = asyncio.Semaphore(max(1, at_once // batch_size))

        async def apply(item: Any) -> Any:
            value = function(item)
            return await value if asyncio.iscoroutine(value) else value

        async def together(part: Sequence[Any]) -> list[Any]:
            async with permits:
                return await asyncio.gather(*(apply(item) for item in part))

        parts = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        return [value for found in await asyncio.gather(*(together(part) for part in parts)) for value in found]
