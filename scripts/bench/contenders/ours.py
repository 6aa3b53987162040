"""This project: batches by ``graft.submit``, single calls by the executor, on the cpu lane and on the io lane."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from graft.scripts.bench.contenders.base import Contender, Starter, callable_of


class Graft(Contender):
    name = "graft"
    title = "celery-graft"
    needs = ("celery", "kombu", "redis")
    shapes = frozenset({"batch", "singles", "submit", "latency", "stream", "depth"})
    batch_size: int | None = None
    in_flight: int | None = None

    def start(self, starter: Starter) -> None:
        starter.worker("cpu", self.setup.concurrency, self.environ)

    def open(self) -> None:
        import graft
        from graft.compat.executor import CeleryExecutor

        self.send = graft.submit
        self.executor = CeleryExecutor()

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        self.batch_size, self.in_flight = batch_size, in_flight

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        found: list[Any] = self.held(function, items).collect()
        return found

    def submit(self, function: str, item: Any) -> Future[Any]:
        return self.executor.submit(callable_of(function), item)

    def gather(self, handles: Sequence[Future[Any]]) -> list[Any]:
        return [handle.result() for handle in handles]

    def stream(self, function: str, items: Iterator[Any]) -> Iterator[Any]:
        return iter(self.send(callable_of(function), items))

    def held(self, function: str, items: Sequence[Any]) -> Any:
        return self.send(callable_of(function), items, batch_size=self.batch_size, in_flight=self.in_flight)


class GraftPrefork(Graft):
    """On Celery's own pool."""

    name = "graft-prefork"
    title = "celery-graft, GRAFT_POOL=prefork"

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "GRAFT_POOL": "prefork"}


class GraftIo(Graft):
    """One process of the io lane."""

    name = "graft-io"
    title = "celery-graft, io lane, one process"
    shapes = frozenset({"batch", "singles", "submit", "latency", "bounded"})
    functions = frozenset({"nap", "anoop", "pause", "spin"})

    def start(self, starter: Starter) -> None:
        starter.worker("io", 1_000, self.environ)

    def bounded(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        import asyncio

        from graft.compat.async_worker_optimization import AsyncWorkerOptimizer

        async def run() -> list[Any]:
            return await AsyncWorkerOptimizer().optimize_batch_processing(
                items, callable_of(function), batch_size=10, max_concurrent=max(1, at_once // 10), place="cluster"
            )

        return asyncio.run(run())


class GraftCpu(Graft):
    """The cpu lane, given the same as the io lane: coroutines too, which would not go there by themselves."""

    name = "graft-cpu"
    title = "celery-graft, cpu lane, one process per core"
    shapes = frozenset({"batch"})
    functions = frozenset({"nap", "anoop", "pause", "spin"})

    def held(self, function: str, items: Sequence[Any]) -> Any:
        return self.send(callable_of(function), items, queue="batch")


class GraftPool(Graft):
    """``WorkerPool(20, 200)``: a result is taken by its task's id, so one that came twice would be one too many."""

    name = "graft-pool"
    title = "celery-graft, WorkerPool(20, 200)"
    shapes = frozenset({"pool", "submit"})
    functions = frozenset({"noop", "spin", "pause"})

    def open(self) -> None:
        from graft.compat.worker_pool import Task, WorkerPool

        self.task, self.make = Task, partial(WorkerPool, 20, 200)
        self.workers = self.make()
        self.workers.start()
        self.numbers = itertools.count()

    def close(self) -> None:
        self.workers.graceful_shutdown(30)

    def submit(self, function: str, item: Any) -> Any:
        number = next(self.numbers)
        self.workers.submit_task_with_timeout(self.task(number, partial(callable_of(function), item)), 60)
        return number

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        found: dict[Any, Any] = {}
        while len(found) < len(handles):
            result = self.workers.get_result().get(60)
            found[result.task_id] = result.output
        return [found[handle] for handle in handles]

    def pooled(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        results: list[Any] = []
        with self.make() as pool:
            reader = threading.Thread(target=lambda: results.extend(pool.get_result()))
            reader.start()
            for number, item in enumerate(items):
                pool.submit_task_with_timeout(self.task(number, partial(callable_of(function), item)), 60)
        reader.join()
        return [result.output for result in sorted(results, key=lambda result: result.task_id)]
