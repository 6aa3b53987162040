"""Stock Celery, beside us on the same Redis: a group, single calls, and ``chunks`` at its best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from graft.scripts.bench.contenders.base import Contender, ContenderSetup, Starter
from graft.scripts.bench.contenders.sweep import best, sizes


class StockCelery(Contender):
    name = "celery"
    title = "stock Celery, prefork"
    needs = ("celery",)
    shapes = frozenset({"batch", "singles", "submit", "latency", "pool", "callers", "load"})
    functions = frozenset({"noop", "spin", "anoop"})
    pool: tuple[str, ...] = ("-P", "prefork")
    module = "graft.scripts.bench.peers.stock_app"

    def start(self, starter: Starter) -> None:
        argv = [sys.executable, "-m", "celery", "-A", self.module, "worker", "-l", "WARNING"]
        argv += [*self.pool, "-c", str(self.setup.concurrency), "--without-gossip", "--without-mingle"]
        starter.start(argv, self.environ)

    def open(self) -> None:
        self.tasks = import_module(self.module).TASKS

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        from celery import group

        task = self.tasks[function]
        found: list[Any] = group([task.s(item) for item in items]).apply_async().get()
        return found

    def submit(self, function: str, item: Any) -> Any:
        return self.tasks[function].delay(item)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.get() for handle in handles]


class HardenedCelery(StockCelery):
    """The same tasks, and one line more: ``graft.harden(app)``."""

    name = "hardened"
    title = "the same app, hardened"
    module = "graft.scripts.bench.peers.hardened_app"


class HardenedPrefork(HardenedCelery):
    """On Celery's own pool."""

    name = "hardened-prefork"
    title = "the same, GRAFT_POOL=prefork"

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "GRAFT_POOL": "prefork"}


class OneProcess(StockCelery):
    """For comparisons with one process of an async queue."""

    name = "celery-1"
    title = "stock Celery, prefork -c 1"

    def __init__(self, setup: ContenderSetup) -> None:
        super().__init__(ContenderSetup(setup.redis_url, 1, setup.env))


class Solo(OneProcess):
    """Celery's smallest worker: no pool process at all."""

    name = "celery-solo"
    title = "stock Celery, solo"
    pool = ("-P", "solo")


class Chunks(StockCelery):
    """``task.chunks``: the size swept, and ``get`` told to look every 2 ms instead of every half second."""

    name = "chunks"
    title = "stock Celery, chunks at its best"
    shapes = frozenset({"batch"})
    size = 100

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        found = sizes(len(items), self.setup.concurrency)
        self.size = batch_size or best(found, lambda size: self._run(function, items, size))

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        return self._run(function, items, self.size)

    def _run(self, function: str, items: Sequence[Any], size: int) -> list[Any]:
        result = self.tasks[function].chunks(((item,) for item in items), size).group().apply_async()
        return [value for part in result.get(interval=0.002) for value in part]
