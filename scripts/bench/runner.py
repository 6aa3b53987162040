"""The process that one contender's caller lives in, and its clock. Started by field.py, spoken to over a socket.

What is timed begins with the items in a list and ends with the results in a list; checking them comes after.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client
from typing import Any

import psutil

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.contenders.base import Contender, ContenderSetup
from graft.scripts.bench.measuring import Answer
from graft.scripts.bench.workloads import Workload

ADDRESS, SECRET = "GRAFT_BENCH_ADDRESS", "GRAFT_BENCH_SECRET"
AT_ONCE = 50
CALLERS = 8
SEED = 1
IN_POOL = 220  # 20 that run and 200 that wait.
HOLD_PATIENCE = 300.0


class WrongResultError(Exception):
    """A contender returned something else than it should have."""


class Runner:
    """Answers the commands of field.py for one contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._items: tuple[Workload, list[Any]] | None = None
        self._held: Any = None

    def do_open(self) -> None:
        self.contender.open()

    def do_close(self) -> None:
        self.contender.close()

    def do_hello(self, function: str) -> None:
        """Have one item done: whoever answers this is ready."""
        item = 0 if function in ("noop", "anoop") else 0.001
        shapes = self.contender.shapes
        if "batch" in shapes:
            self.contender.batch(function, [item])
        elif "singles" in shapes:
            self.contender.one(function, item)
        elif "pool" in shapes:
            self.contender.pooled(function, [item], IN_POOL)
        else:
            self.contender.bounded(function, [item], AT_ONCE)

    def do_warm(self, workload: Workload, budget: float) -> int:
        """Warm up, choose settings; how many items one repetition may have to stay within *budget* seconds."""
        if workload.shape in ("stream", "depth"):
            self.contender.prepare(workload.function, [], batch_size=workload.batch_size, in_flight=workload.in_flight)
            return workload.items.count
        if workload.whole:
            self._prepare(workload)
            self.do_run(workload.of(max(50, workload.items.count // 10)))
            return workload.items.count
        count = min(workload.items.count, 16 if workload.shape == "latency" else 50)
        while True:
            part = workload.of(count)
            self._prepare(part)
            seconds = self.do_run(part).seconds
            # Not from a short probe: what a batch costs as a whole would be taken for what its items cost.
            if seconds > budget / 4 or count == workload.items.count:
                break
            count = min(workload.items.count, count * 4)
        affordable = workload.items.count
        if seconds / count * workload.items.count > budget:
            affordable = max(count, int(budget / (seconds / count)))
        if count < affordable:
            self._prepare(workload.of(affordable))
        return affordable

    def _prepare(self, workload: Workload) -> None:
        if workload.shape == "batch":
            items = self._make(workload)
            self.contender.prepare(
                workload.function, items, batch_size=workload.batch_size, in_flight=workload.in_flight
            )

    def do_run(self, workload: Workload) -> Answer:
        """One repetition."""
        if workload.shape == "stream":
            return self._stream(workload)
        items = self._make(workload)
        gc.collect()
        act: Callable[[Workload, list[Any]], tuple[float, Sequence[Any], list[float]]] = {
            "batch": self._batch,
            "singles": self._singles,
            "submit": self._submit,
            "latency": self._latency,
            "bounded": self._bounded,
            "pool": self._pool,
            "callers": self._callers,
            "load": self._load,
        }[workload.shape]
        began = time.monotonic()
        seconds, results, times = act(workload, items)
        if wrong := workload.check(items, results):
            raise WrongResultError(wrong)
        extra = _work_done(items, results, began, seconds) if workload.is_work else {}
        return Answer(len(items), seconds, tuple(times), extra)

    def _batch(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        began = time.perf_counter()
        results = self.contender.batch(workload.function, items)
        return time.perf_counter() - began, results, []

    def _bounded(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        began = time.perf_counter()
        results = self.contender.bounded(workload.function, items, AT_ONCE)
        return time.perf_counter() - began, results, []

    def _pool(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        began = time.perf_counter()
        results = self.contender.pooled(workload.function, items, IN_POOL)
        return time.perf_counter() - began, results, []

    def _callers(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        one, function = self.contender.one, workload.function
        with ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda item: one(function, item), items[:CALLERS]))  # Each thread connects.
            began = time.perf_counter()
            results = list(callers.map(lambda item: one(function, item), items))
            return time.perf_counter() - began, results, []

    def _load(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        cores = workload.concurrency or self.contender.setup.concurrency
        pause = sum(items) / len(items) / (cores * workload.load)
        dice = random.Random(SEED)  # The same for everybody.
        submit, function = self.contender.submit, workload.function
        due, handles = [], []
        moment = began = time.monotonic()
        for item in items:
            moment += dice.expovariate(1 / pause)
            time.sleep(max(0.0, moment - time.monotonic()))
            due.append(moment)
            handles.append(submit(function, item))
        results = self.contender.gather(handles)
        waits = [max(0.0, result[2] - moment) for result, moment in zip(results, due, strict=True)]
        return time.monotonic() - began, results, waits

    def _singles(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        began = time.perf_counter()
        results = self.contender.singles(workload.function, items)
        return time.perf_counter() - began, results, []

    def _submit(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        clock, submit, function = time.perf_counter, self.contender.submit, workload.function
        handles, times = [], []
        for item in items:
            began = clock()
            handle = submit(function, item)
            times.append(clock() - began)
            handles.append(handle)
        return sum(times), self.contender.gather(handles), times

    def _latency(self, workload: Workload, items: list[Any]) -> tuple[float, Sequence[Any], list[float]]:
        clock, one, function = time.perf_counter, self.contender.one, workload.function
        results, times = [], []
        for item in items:
            began = clock()
            result = one(function, item)
            times.append(clock() - began)
            results.append(result)
        return sum(times), results, times

    def _stream(self, workload: Workload) -> Answer:
        """Items are made one by one and results dropped one by one, so that only the road can grow."""
        process = psutil.Process()
        gc.collect()
        before = peak = process.memory_info().rss
        began = time.perf_counter()
        count = 0
        for expected, result in zip(
            workload.items.stream(), self.contender.stream(workload.function, workload.items.stream()), strict=True
        ):
            if result != expected:
                raise WrongResultError(f"item {count} came back as {result!r} instead of {expected!r}")
            count += 1
            if count % 4096 == 0:
                peak = max(peak, process.memory_info().rss)
        seconds = time.perf_counter() - began
        return Answer(count, seconds, (), {"caller_growth": float(max(peak, process.memory_info().rss) - before)})

    def do_hold(self, workload: Workload) -> float:
        """Put a whole batch into the queue, whose workers are stopped; seconds until all of it waits there."""
        items = self._make(workload)
        gc.collect()
        began = time.perf_counter()
        self._held = self.contender.held(workload.function, items)
        while (sent := self._held.progress().sent) < len(items):
            if time.perf_counter() - began > HOLD_PATIENCE:
                raise TimeoutError(f"only {sent:,} of {len(items):,} items were sent within {HOLD_PATIENCE:g} s")
            time.sleep(0.002)
        return time.perf_counter() - began

    def do_release(self, workload: Workload, held: float) -> Answer:
        """Collect it, now that the workers run again."""
        began = time.perf_counter()
        results = self._held.collect()
        seconds = time.perf_counter() - began
        self._held = None
        if wrong := workload.check(self._make(workload), results):
            raise WrongResultError(wrong)
        return Answer(workload.items.count, held + seconds, (), {"drain": seconds})

    def _make(self, workload: Workload) -> list[Any]:
        if self._items is None or self._items[0] != workload:
            self._items = None  # The old ones first: a list may hold 200 MiB.
            self._items = (workload, workload.items.make())
        return self._items[1]


def _work_done(items: Sequence[float], results: Sequence[Any], began: float, seconds: float) -> dict[str, float]:
    """The items' own processor time, and how long the first worker to finish waited for the last."""
    last: dict[int, float] = {}
    for _, pid, _, ended in results:
        last[pid] = max(ended, last.get(pid, 0.0))
    idle = (max(last.values()) - min(last.values())) / seconds if len(last) > 1 else 0.0
    return {"work": float(sum(items)), "idle_tail": idle, "busy_workers": float(len(last)), "began": began}


def main() -> None:
    name, redis_url, concurrency = sys.argv[1], os.environ.pop("GRAFT_BENCH_URL"), int(sys.argv[2])
    runner = Runner(CONTENDERS[name](ContenderSetup(redis_url, concurrency, dict(os.environ))))
    os.environ.update(runner.contender.environ)
    with Client("\0" + os.environ.pop(ADDRESS), "AF_UNIX", authkey=bytes.fromhex(os.environ.pop(SECRET))) as line:
        while True:
            try:
                verb, arguments = line.recv()
            except EOFError:
                return
            try:
                line.send(("done", getattr(runner, f"do_{verb}")(*arguments)))
            except Exception:
                line.send(("failed", traceback.format_exc(limit=-6)))


if __name__ == "__main__":
    main()
