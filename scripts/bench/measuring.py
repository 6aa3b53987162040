"""Numbers about numbers: medians and spread; and what processes have used, asked of the kernel."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import psutil

from graft.scripts.bench.workloads import Workload


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which *share* of the values lie, from 0 to 1, between neighbours by proportion."""
    if not values:
        raise ValueError("no values, so no quantile")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must be from 0 to 1")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True)
class Spread:
    """Of a few repetitions."""

    least: float
    median: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(min(values), statistics.median(values), quantile(values, 0.9))


@dataclass(frozen=True)
class Answer:
    """A runner's report of one repetition; ``times`` has one entry for each call, in seconds."""

    items: int
    seconds: float
    times: tuple[float, ...] = ()
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Repetition:
    """One repetition, with what its processes used meanwhile: processor seconds of client, workers and Redis."""

    answer: Answer
    client: float
    workers: float
    redis: float


@dataclass
class Series:
    """All repetitions of one workload by one contender."""

    workload: Workload
    contender: str
    repetitions: list[Repetition] = field(default_factory=list)
    failure: str = ""
    memory: dict[str, float] = field(default_factory=dict)
    history: list[tuple[float, float, float, float]] = field(default_factory=list)
    note: str = ""

    @property
    def items(self) -> int:
        return self.repetitions[0].answer.items

    @property
    def is_scaled(self) -> bool:
        """True if fewer items ran than the workload has."""
        return self.items < self.workload.items.count

    @property
    def has_whole(self) -> bool:
        """True if the figure is of all calls together, and not of each single one."""
        return self.workload.shape not in ("submit", "latency", "load")

    @property
    def seconds(self) -> Spread:
        """Of one repetition with all the workload's items; in proportion, where fewer ran."""
        scale = self.workload.items.count / self.items
        return Spread.of([repetition.answer.seconds * scale for repetition in self.repetitions])

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.workload.items.count / self.seconds.median

    @property
    def times(self) -> list[float]:
        """The seconds of each call, of all repetitions."""
        return [moment for repetition in self.repetitions for moment in repetition.answer.times]

    @property
    def figure(self) -> float:
        """The one number that contenders are compared by: seconds, smaller is better."""
        return self.seconds.median if self.has_whole else statistics.median(self.times)

    @property
    def tail(self) -> float:
        """The 99th percentile of calls: the median of the repetitions' own, so that one bad second is not the tail."""
        return statistics.median(quantile(repetition.answer.times, 0.99) for repetition in self.repetitions)

    def median(self, name: str) -> float | None:
        """Of an extra figure."""
        values = [each.answer.extra[name] for each in self.repetitions if name in each.answer.extra]
        return statistics.median(values) if values else None

    def cpu(self, part: str) -> float:
        """Processor seconds per item of ``client``, ``workers`` or ``redis``."""
        return statistics.median([float(getattr(each, part)) / each.answer.items for each in self.repetitions])


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all their descendants that live."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            found[pid] = parent
            found |= {child.pid: child for child in parent.children(recursive=True)}
    return list(found.values())


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time so far of these processes, their descendants, and what these have waited for."""
    total = 0.0
    for process in tree(pids):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += float(times.user + times.system + times.children_user + times.children_system)
    return total


def pss(pids: Iterable[int]) -> int:
    """Proportional set size in bytes: pages that processes share are counted once between them."""
    total = 0
    for process in tree(pids):
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def rss(pids: Iterable[int]) -> int:
    """Resident bytes, shared pages counted for each."""
    total = 0
    for process in tree(pids):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


class MemoryWatch:
    """Notes resident bytes of caller, workers and Redis a few times a second while a block runs."""

    def __init__(self, client: Sequence[int], workers: Sequence[int], redis: Any, interval: float = 0.25) -> None:
        self._client, self._workers, self._redis = client, workers, redis
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="memory-watch")
        self.history: list[tuple[float, float, float, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while True:
            used = float(self._redis.info("memory")["used_memory"])
            self.history.append((time.monotonic() - began, rss(self._client), rss(self._workers), used))
            if self._over.wait(self._interval):
                return
