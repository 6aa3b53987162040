"""The four ways that the comparison measures, each run in a process of its own.

``old`` is the in-process optimizer as it was, in twenty lines; the others are today's ``HybridWorkerOptimizer``: one
task for each item, Ray, and the one of them that it chooses itself.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from graft.compat import worker_admin
from graft.compat.celery_ray_hybrid_poc import HybridWorkerOptimizer
from graft.tasks.monitoring.worker_registry import BEAT_EVERY

Item = tuple[int, int, float]  # Its number, the numbers it adds up, the seconds it waits.
Work = Callable[[Item], Any]
Way = Callable[[Work, list[Item]], Coroutine[Any, Any, tuple[str, list[Any]]]]  # What ran, and the results.
NEVER: Final = sys.maxsize


def compute(item: Item) -> int:
    """Keep a processor busy."""
    number, rounds, _ = item
    return number + sum(range(rounds))


async def wait(item: Item) -> int:
    """Wait, as for a database."""
    number, rounds, seconds = item
    await asyncio.sleep(seconds)
    return answer((number, rounds, seconds))


def answer(item: Item) -> int:
    """The result of both."""
    number, rounds, _ = item
    return number + rounds * (rounds - 1) // 2


WORK: Final[dict[str, Work]] = {"compute": compute, "wait": wait}


# ---- the ways --------------------------------------------------------------------------------------------------------


async def old_optimizer(
    items: Sequence[Item], task_func: Callable[[Item], Awaitable[Any]], batch_size: int = 10, max_concurrent: int = 5
) -> list[Any]:
    """``optimize_batch_processing`` as it was: batches of coroutines on the caller's loop, *max_concurrent* at once."""
    slots = asyncio.Semaphore(max_concurrent)

    async def process(batch: Sequence[Item]) -> list[Any]:
        async with slots:
            return await asyncio.gather(*(task_func(item) for item in batch))

    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return [result for part in await asyncio.gather(*(process(batch) for batch in batches)) for result in part]


async def old(work: Work, items: list[Item]) -> tuple[str, list[Any]]:
    async def task_func(item: Item) -> Any:
        found = work(item)
        return await found if inspect.isawaitable(found) else found

    return "old", await old_optimizer(items, task_func)


def today(use_ray: bool, threshold: int) -> Way:
    """Today's optimizer: below *threshold* items a task for each, from it on the bulk engine, or Ray."""
    optimizer = HybridWorkerOptimizer(use_ray=use_ray)

    async def way(work: Work, items: list[Item]) -> tuple[str, list[Any]]:
        outcome = await optimizer.hybrid_optimization(items, threshold, func=work)
        return outcome.method, outcome.result

    return way


def way_named(name: str, use_ray: bool) -> Way:
    match name:
        case "old":
            return old
        case "celery":
            return today(use_ray=False, threshold=NEVER)
        case "ray":
            return today(use_ray=True, threshold=0)
        case _:
            return today(use_ray, threshold=100)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(name: str, work: Work, sizes: Sequence[int], rounds: int, seconds: float, use_ray: bool) -> dict[str, Any]:
    """Run every size once: its ``seconds``, what ran it and whether each result is right; and the ``memory`` in bytes.

    The first items, four of them, are not measured: they start processes and open connections.
    """
    way = way_named(name, use_ray)
    found: dict[str, Any] = {"sizes": []}
    asyncio.run(way(work, [(0, rounds, seconds)] * 4))
    for size in sizes:
        items = [(number, rounds, seconds) for number in range(size)]
        began = time.perf_counter()
        method, results = asyncio.run(way(work, items))
        spent = time.perf_counter() - began
        is_right = results == [answer(item) for item in items]
        found["sizes"].append({"items": size, "seconds": spent, "method": method, "is_right": is_right})
    found["memory"] = memory(any(row["method"] == "celery" for row in found["sizes"]))
    return found


def memory(with_workers: bool) -> int:
    """Resident bytes of this process, of those it has started, and of the workers; what they share counts in each."""
    total = 0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    if with_workers:
        time.sleep(BEAT_EVERY)  # Workers publish their memory with every heartbeat.
        total += sum(worker_admin.worker_memory().values())
    return total


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one way, for the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--way", required=True, choices=["old", "celery", "ray", "hybrid"])
    parser.add_argument("--work", required=True, choices=sorted(WORK))
    parser.add_argument("--size", type=int, action="append", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    found = measure(given.way, WORK[given.work], given.size, given.rounds, given.seconds, given.ray)
    given.out.write_text(json.dumps(found))
