"""The io lane's figures on this machine: ``python -m tests.workers.aio.figures``. Not a test.

Everything is measured from the first message sent to the last result in the caller's hands, after a warm-up. What is
compared runs in turns within one run: ratios bear other load on the machine better than seconds do.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from tests.stack import ROOT, Stack, clean_environ

STOCK = """
from celery import Celery
from os import environ
app = Celery("stock", broker=environ["STOCK_URL"], backend=environ["STOCK_URL"])
@app.task(name="stock.tiny")
def tiny(x):
    return x
"""


def together(task: Any, calls: Sequence[tuple[Any, ...]], queue: str) -> float:
    """Seconds until *task* has been called with all of *calls* as single Celery tasks and all have answered."""
    from graft.config.celery_app import app
    from graft.tasks.ids import new_id
    from graft.tasks.results.subscriber import inbox

    done, left, failed = threading.Event(), [len(calls)], []
    inbox().open()

    def answered(task_id: str, meta: Any) -> None:
        left[0] -= 1
        if isinstance(meta, BaseException) or meta["status"] != "SUCCESS":
            failed.append(meta)
        if not left[0]:
            done.set()

    began = time.perf_counter()
    with app.producer_or_acquire() as producer:
        for start in range(0, len(calls), 100):
            with producer.batch():
                for args in calls[start : start + 100]:
                    task_id = new_id()
                    inbox().expect(task_id, answered)
                    task.apply_async(args, queue=queue, task_id=task_id, producer=producer)
    if not done.wait(120) or failed:
        raise RuntimeError(f"{left[0]} of {len(calls)} did not answer, {len(failed)} failed: {failed[:1]}")
    return time.perf_counter() - began


def sleeping(count: int, seconds: float = 1.0) -> float:
    """*count* single tasks that sleep for *seconds*."""
    from tests.workers.aio import samples

    return together(samples.pause, [(number, seconds) for number in range(count)], "io")


def tiny(count: int) -> float:
    """*count* single tasks that do next to nothing."""
    from tests.workers.aio import samples

    return together(samples.nothing, [(number,) for number in range(count)], "io")


def stock_tiny(count: int, app: Any, queue: str) -> float:
    """The same for a stock worker: results are heard as they are announced, as above."""
    import redis

    task = app.tasks["stock.tiny"]
    with redis.Redis.from_url(os.environ["STOCK_URL"]) as client, client.pubsub() as heard:
        heard.psubscribe("celery-task-meta-*")
        heard.get_message(timeout=5)
        began = time.perf_counter()
        with app.producer_or_acquire() as producer:
            for start in range(0, count, 100):
                with producer.batch():
                    for number in range(start, min(start + 100, count)):
                        task.apply_async((number,), queue=queue, producer=producer)
        while count:
            message = heard.get_message(timeout=60)
            count -= message is not None and message["type"] == "pmessage"
        return time.perf_counter() - began


async def ten_milliseconds(x: int) -> int:
    await asyncio.sleep(0.01)
    return x


async def batches() -> tuple[float, float]:
    """1,000 items of 10 ms through the old call, and through the old code in this process."""
    from graft.compat.async_worker_optimization import AsyncWorkerOptimizer

    optimizer, items = AsyncWorkerOptimizer(), list(range(1000))
    await optimizer.optimize_batch_processing(items, ten_milliseconds, batch_size=10, max_concurrent=5)
    began = time.perf_counter()
    await optimizer.optimize_batch_processing(items, ten_milliseconds, batch_size=10, max_concurrent=5)
    middle = time.perf_counter()
    await optimizer.optimize_batch_processing(items, ten_milliseconds, batch_size=10, max_concurrent=5, place="local")
    return middle - began, time.perf_counter() - middle


def best(measure: Callable[[], float], rounds: int = 3) -> str:
    seconds = sorted(measure() for _ in range(rounds))
    return f"{seconds[0]:.2f} s best, {statistics.median(seconds):.2f} s median of {rounds}"


def resident(pid: int) -> float:
    """MB of memory, with what it shares with other processes in proportion."""
    return psutil.Process(pid).memory_full_info().pss / 1e6


def main() -> None:
    with Stack({}, clean_environ(os.environ)) as stack:
        worker = stack.add_worker("io", 10_000, every_queue=False)
        stack.wait_ready()
        os.environ.update(stack.variables)
        os.environ["STOCK_URL"] = stack.redis_url
        stock_directory = stack.directory / "stock"
        stock_directory.mkdir()
        (stock_directory / "stock_app.py").write_text(STOCK)
        sys.path.insert(0, str(stock_directory))
        env = {name: value for name, value in stack.env.items() if not name.startswith("CELERY_")}
        env |= {"STOCK_URL": stack.redis_url, "PYTHONPATH": f"{stock_directory}:{ROOT}"}
        stocks = {
            pool: subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "stock_app", "worker", "-P", pool, "-c", "1"),
                    *("-Q", f"stock-{pool}", "-n", f"{pool}@figures", "-l", "ERROR"),
                    *("--without-gossip", "--without-mingle"),
                ],
                env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for pool in ("prefork", "solo")
        }  # fmt: skip
        try:
            measure(worker.pid, stocks)
        finally:
            for process in stocks.values():
                process.terminate()
            for process in stocks.values():
                process.wait(20)


def measure(pid: int, stocks: dict[str, subprocess.Popen[bytes]]) -> None:
    import stock_app  # type: ignore[import-not-found]

    stock_app.app.backend.on_task_call = lambda *_: None
    from graft.config.celery_app import app

    app.backend.on_task_call = lambda *_: None
    tiny(50)
    stock_tiny(50, stock_app.app, "stock-prefork")
    stock_tiny(50, stock_app.app, "stock-solo")  # Now it has loaded what it needs.
    idle = resident(pid), resident(stocks["solo"].pid)
    print(f"idle: io {idle[0]:.0f} MB, stock solo {idle[1]:.0f} MB, ratio {idle[0] / idle[1]:.2f}", flush=True)
    rates: dict[str, list[float]] = {"io": [], "prefork": [], "solo": []}
    for _ in range(4):
        rates["io"].append(1000 / tiny(1000))
        for pool in ("prefork", "solo"):
            rates[pool].append(1000 / stock_tiny(1000, stock_app.app, f"stock-{pool}"))
    for name, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["io"], values, strict=True))
        print(f"1,000 tiny tasks, {name}: {statistics.median(values):.0f}/s (io is {ratio:.1f} x)", flush=True)
    sleeping(100, 0.1)
    print(f"1,000 tasks of 1 s: {best(lambda: sleeping(1000))}", flush=True)
    print(f"10,000 tasks of 1 s: {best(lambda: sleeping(10_000), 2)}", flush=True)
    pairs = sorted((asyncio.run(batches()) for _ in range(6)), key=lambda pair: pair[0] / pair[1])
    ours, theirs = pairs[len(pairs) // 2]
    print(f"1,000 items of 10 ms: {ours:.3f} s, in this process {theirs:.3f} s, ratio {ours / theirs:.2f}", flush=True)
    print(f"afterwards: io {resident(pid):.0f} MB")


if __name__ == "__main__":
    main()
