"""Settings for a function, from measurements of it: pure decisions, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from graft.config.queues import Lane
from graft.scripts.console import duration

ENVELOPE_SECONDS = 0.1
ENVELOPE_BYTES = 1 << 20
MOST_PROCESSES = 32  # Of a plain function that waits: each takes some 30 MiB; more at once is what the io lane is for.
GAIN = 1.05  # Workers must be faster by this factor to be worth it.
MOST_AT_ONCE = 1_000
WAITING = 0.5  # A function that uses less of its time than this on a processor waits for something else.


@dataclass(frozen=True)
class Sample:
    """The cost of items in one process.

    ``seconds`` and ``cpu`` are of a mean item; ``slowest`` is the 99th percentile in medians; ``size`` the bytes of a
    pickled item and its pickled result together; ``at_once`` the seconds of a mean item with 100 of them under way, of
    async functions.
    """

    items: int
    seconds: float
    cpu: float
    slowest: float
    size: float
    is_async: bool
    at_once: float | None = None

    @property
    def busy(self) -> float:
        """The share of its time that an item keeps a processor busy, from 0 to 1."""
        return min(1.0, self.cpu / self.seconds) if self.seconds > 0 else 1.0

    @property
    def here(self) -> float:
        """Seconds per item in the caller's own process, at its best."""
        return min(self.seconds, self.at_once or math.inf)


@dataclass(frozen=True)
class Cluster:
    """The cost of the same items on workers.

    ``trip`` is one item there and back; ``sizes`` seconds per item for each batch size, 0 for automatic sizes.
    """

    workers: int
    trip: float
    sizes: Mapping[int, float]

    @property
    def best(self) -> int:
        """The quickest size; the automatic one where it is within 10 % of that."""
        quickest = min(self.sizes, key=lambda size: self.sizes[size])
        if 0 in self.sizes and self.sizes[0] <= 1.1 * self.sizes[quickest]:
            return 0
        return quickest

    @property
    def seconds(self) -> float:
        """Per item, at the best size."""
        return self.sizes[self.best]


@dataclass(frozen=True)
class Recommendation:
    """One setting, its value, and why."""

    setting: str
    value: str
    reason: str


def lane(sample: Sample) -> Lane:
    return "io" if sample.is_async else "cpu"


def concurrency(sample: Sample, cores: int) -> int:
    """Items at once that keep the cores busy: processes on the cpu lane, coroutines on the io lane."""
    fitting = cores / max(sample.busy, 1e-6)
    if sample.is_async:
        # One process, one core: a loop of its own.
        return max(10, min(MOST_AT_ONCE, math.ceil(fitting / cores)))
    if sample.busy >= WAITING:
        return cores
    return max(cores, min(MOST_PROCESSES, math.ceil(fitting)))


def fitting_size(sample: Sample) -> int:
    """Items that hold a tenth of a second of work and no more than a mebibyte."""
    by_time = ENVELOPE_SECONDS / max(sample.seconds, 1e-9)
    by_bytes = ENVELOPE_BYTES / max(sample.size, 1.0)
    return max(1, int(min(by_time, by_bytes, 20_000)))


def break_even_items(sample: Sample, cluster: Cluster) -> float:
    """Items from which on a batch is quicker on the workers: infinite when it never is.

    Here n items take n x here; on the workers trip + n x seconds.
    """
    gain = sample.here - cluster.seconds
    return max(1.0, cluster.trip / gain) if sample.here > GAIN * cluster.seconds else math.inf


def break_even_seconds(sample: Sample, cluster: Cluster) -> float:
    """Seconds per item from which the workers are faster, with many items of this size.

    The overhead of an item is its time on the workers without the work itself, which the workers share; w workers save
    1 - 1/w of the work.
    """
    if cluster.workers < 2:
        return math.inf
    overhead = max(0.0, cluster.seconds - sample.seconds / cluster.workers)
    return overhead / (1 - 1 / cluster.workers)


Decision = Literal["stay", "send", "send-large"]


def verdict(sample: Sample, cluster: Cluster, items: int) -> Decision:
    """Says if *items* should be sent to workers: always, only in larger batches, or never."""
    need = break_even_items(sample, cluster)
    if math.isinf(need):
        return "stay"
    return "send" if need <= items else "send-large"


def recommend(sample: Sample, cluster: Cluster, items: int, cores: int) -> list[Recommendation]:
    """All recommendations, the most important first."""
    return [
        _where(sample, cluster, items),
        _lane(sample),
        _batch_size(sample, cluster),
        _concurrency(sample, cores),
        Recommendation("prefetch", "1", _prefetch(sample)),
    ]


def _where(sample: Sample, cluster: Cluster, items: int) -> Recommendation:
    ratio = sample.here / cluster.seconds
    match verdict(sample, cluster, items):
        case "stay":
            if ratio > 1 / GAIN:
                why = "the workers are no faster"
            else:
                why = f"the workers take {1 / ratio:.2g} times as long, with any number of items"
            need = break_even_seconds(sample, cluster)
            if not sample.is_async and sample.seconds < need < math.inf:
                why += (
                    f"; they are faster from about {duration(need)} per item, and these take {duration(sample.seconds)}"
                )
            return Recommendation("where", "in the caller's process", why)
        case "send":
            need = math.ceil(break_even_items(sample, cluster))
            condition = f"if there are {need:,} items or more" if need > 1 else "with any number of items"
            return Recommendation("where", "on the workers", f"{ratio:.2g} times the speed of one process, {condition}")
        case _:
            need = break_even_items(sample, cluster)
            return Recommendation(
                "where", "in the caller's process, for so few items",
                f"the workers are faster from about {math.ceil(need):,} items, and these are {items:,}",
            )  # fmt: skip


def _lane(sample: Sample) -> Recommendation:
    if sample.is_async:
        return Recommendation("lane", "io", "a coroutine function: one event loop runs many items at once")
    if sample.busy >= WAITING:
        return Recommendation("lane", "cpu", f"it computes for {sample.busy:.0%} of its time")
    return Recommendation(
        "lane", "cpu",
        f"it waits for {1 - sample.busy:.0%} of its time and blocks a process meanwhile; as an async function it "
        "would suit the io lane",
    )  # fmt: skip


def _batch_size(sample: Sample, cluster: Cluster) -> Recommendation:
    if cluster.best == 0:
        return Recommendation(
            "batch_size", "leave it out", f"automatic sizes are as fast as any ({duration(cluster.seconds)} per item)"
        )
    return Recommendation(
        "batch_size", f"{cluster.best:,}",
        f"{duration(cluster.seconds)} per item; automatic sizes: "
        + (duration(cluster.sizes[0]) if 0 in cluster.sizes else "not measured"),
    )  # fmt: skip


def _concurrency(sample: Sample, cores: int) -> Recommendation:
    value = concurrency(sample, cores)
    if sample.is_async:
        return Recommendation(
            "concurrency", f"{value} per io worker", f"an item uses the event loop for {sample.busy:.1%} of its time"
        )
    if value == cores:
        return Recommendation("concurrency", str(value), "one process for each core, because it computes")
    return Recommendation(
        "concurrency", str(value), f"{cores} cores, of which an item uses one for {sample.busy:.0%} of its time"
    )


def _prefetch(sample: Sample) -> str:
    if sample.slowest > 20:
        return f"one item in a hundred takes {sample.slowest:.0f} times the median: no envelope should wait behind it"
    return "an envelope holds many items, so fetching more envelopes ahead gains nothing"
