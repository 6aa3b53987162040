"""The project's promises about its speed, each with the figure of a run that keeps or breaks it.

All promises are in ``TARGETS``; each asks a run for one number, mostly a ratio between contenders of that same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from graft.scripts.bench.contenders import CONTENDERS
from graft.scripts.bench.measuring import Series
from graft.scripts.bench.run import Outcome

MIB: Final = float(1 << 20)
Number = Callable[[Outcome], float | None]


@dataclass(frozen=True)
class Target:
    """One promise: *number* of a run is *at least* or *at most* the limit; *unit* is for printing."""

    promise: str
    number: Number
    sense: Literal["at least", "at most"]
    limit: float
    unit: str = "×"


@dataclass(frozen=True)
class TargetVerdict:
    """One promise against one run; ``found`` is None where the run had not what it takes."""

    target: Target
    found: float | None

    @property
    def is_reached(self) -> bool | None:
        if self.found is None:
            return None
        if self.target.sense == "at least":
            return self.found >= self.target.limit
        return self.found <= self.target.limit

    @property
    def missed_by(self) -> float:
        """The factor that is lacking; 1 or less where nothing is."""
        assert self.found is not None
        if self.target.sense == "at least":
            return self.target.limit / self.found if self.found > 0 else float("inf")
        return self.found / self.target.limit

    @property
    def measured(self) -> str:
        """The measured value with its unit."""
        if self.found is None:
            return ""
        return f"{self.found:,.3g} {self.target.unit}" if self.found < 1000 else f"{self.found:,.0f} {self.target.unit}"

    @property
    def words(self) -> str:
        match self.is_reached:
            case None:
                return "not measured"
            case True:
                return "reached"
            case _:
                return f"missed by a factor of {self.missed_by:.2f}"


def verdicts(outcome: Outcome) -> list[TargetVerdict]:
    return [TargetVerdict(target, target.number(outcome)) for target in TARGETS]


def examined(outcome: Outcome) -> list[TargetVerdict]:
    """Of the promises those that the run has a figure for, which may be none."""
    return [verdict for verdict in verdicts(outcome) if verdict.found is not None]


# ---- numbers of a run ------------------------------------------------------------------------------------------------


def quicker(workload: str, than: str, ours: str = "graft") -> Number:
    """The time of *than*, divided by ours."""
    return lambda outcome: _ratio(outcome.find(workload, than), outcome.find(workload, ours))


def slower(workload: str, than: str, ours: str = "graft") -> Number:
    """Our time, divided by that of *than*."""
    return lambda outcome: _ratio(outcome.find(workload, ours), outcome.find(workload, than))


def quicker_than_peers(workload: str) -> Number:
    """The time of the fastest other task queue, divided by ours."""

    def number(outcome: Outcome) -> float | None:
        peers = [each for each in outcome.of(workload) if CONTENDERS[each.contender].is_peer]
        ratios = [_ratio(outcome.find(workload, each.contender), outcome.find(workload, "graft")) for each in peers]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return number


def rate(workload: str, ours: str = "graft") -> Number:
    return _of(workload, ours, lambda series: series.rate)


def middle(workload: str, ours: str = "graft") -> Number:
    """The median of single calls, in milliseconds."""
    return _of(workload, ours, lambda series: series.figure * 1e3)


def tail(workload: str, ours: str = "graft") -> Number:
    """The 99th percentile of single calls, in milliseconds."""
    return _of(workload, ours, lambda series: series.tail * 1e3)


def tail_ratio(workload: str, ours: str = "graft") -> Number:
    return _of(workload, ours, lambda series: series.tail / series.figure)


def seconds(workload: str, ours: str = "graft") -> Number:
    return _of(workload, ours, lambda series: series.seconds.median)


def efficiency(workload: str, ours: str = "graft") -> Number:
    """The items' own processor time as a percentage of what the cores had to give."""
    return lambda outcome: _of(workload, ours, lambda series: percent_busy(series, outcome.plan.cores))(outcome)


def percent_busy(series: Series, cores: int) -> float | None:
    work = series.median("work")
    return None if work is None else 100 * work / ((series.workload.concurrency or cores) * _actual(series))


def idle_tail(workload: str, ours: str = "graft") -> Number:
    def number(outcome: Outcome) -> float | None:
        series = outcome.find(workload, ours)
        found = series.median("idle_tail") if series else None
        return None if found is None else 100 * found

    return number


def extra(workload: str, name: str, scale: float = 1.0, ours: str = "graft") -> Number:
    def number(outcome: Outcome) -> float | None:
        series = outcome.find(workload, ours)
        found = series.median(name) if series else None
        return None if found is None else found * scale

    return number


def cost_per_item(workload: str, against: str, ours: str = "graft") -> Number:
    """The cost of an item, divided by that in the workload *against*."""

    def number(outcome: Outcome) -> float | None:
        one, other = outcome.find(workload, ours), outcome.find(against, ours)
        return other.rate / one.rate if one and other else None

    return number


def memory(workload: str, against: str, ours: str = "graft") -> Number:
    """Worker processes after a run, in proportion."""

    def number(outcome: Outcome) -> float | None:
        one, other = outcome.find(workload, ours), outcome.find(workload, against)
        if not one or not other or not other.memory.get("after"):
            return None
        return one.memory["after"] / other.memory["after"]

    return number


def started(workload: str, figure: str, ours: str = "graft-programs", than: str = "celery-programs") -> Number:
    """Of a program that was started the processor time ``cpu`` or the ``idle_memory``, in proportion."""

    def number(outcome: Outcome) -> float | None:
        one, other = outcome.find(workload, ours), outcome.find(workload, than)
        above, below = (series.median(figure) if series else None for series in (one, other))
        return above / below if above and below else None

    return number


def memory_growth(workload: str, ours: str = "graft") -> Number:
    """Worker processes after a workload, in proportion to before it."""

    def number(outcome: Outcome) -> float | None:
        series = outcome.find(workload, ours)
        if not series or not series.memory.get("before") or not series.memory.get("after"):
            return None
        return series.memory["after"] / series.memory["before"]

    return number


def speedup(workload: str, ours: str = "graft") -> Number:
    """The speed-up over running the items one after the other, in shares of the cores."""

    def number(outcome: Outcome) -> float | None:
        series = outcome.find(workload, ours)
        work = series.median("work") if series else None
        return None if not series or work is None else work / _actual(series) / outcome.plan.cores

    return number


def _actual(series: Series) -> float:
    """Seconds of the median repetition, not scaled to items that did not run."""
    return series.seconds.median * series.items / series.workload.items.count


def _of(workload: str, ours: str, read: Callable[[Series], float | None]) -> Number:
    def number(outcome: Outcome) -> float | None:
        series = outcome.find(workload, ours)
        return None if series is None else read(series)

    return number


def _ratio(above: Series | None, below: Series | None) -> float | None:
    return above.figure / below.figure if above and below and below.figure else None


TARGETS: Final[Sequence[Target]] = (
    Target("no-op batch against a stock Celery group", quicker("noop", "celery"), "at least", 300),
    Target("no-op batch against Celery's chunks at its best", quicker("noop", "chunks"), "at least", 2),
    Target("no-op batch against the best other queue", quicker_than_peers("noop"), "at least", 40),
    Target("no-op batch against the batched Redis loop: time", slower("noop", "loop-batched"), "at most", 1.5),
    Target("single calls against stock delay + get", quicker("singles", "celery"), "at least", 25),
    Target("single calls against the best other queue", quicker_than_peers("singles"), "at least", 3),
    Target("single calls", rate("singles"), "at least", 20_000, "/s"),
    Target("inside the submit call: median", middle("submit"), "at most", 0.1, "ms"),
    Target("inside the submit call: 99th percentile", tail("submit"), "at most", 1.0, "ms"),
    Target("no-op tasks through WorkerPool(20, 200)", rate("pool", "graft-pool"), "at least", 15_000, "/s"),
    Target("inside a pool's submitting call: median", middle("pool-submit", "graft-pool"), "at most", 1.0, "ms"),
    Target("a pool's tasks of 10 ms: utilisation", efficiency("pool-10ms", "graft-pool"), "at least", 90, "%"),
    # What the old pools' documents claim (docs/performance.md says where each comes from).
    Target("old claim: requests through a pool", rate("pool", "graft-pool"), "at least", 2_000, "/s"),
    Target("old claim: 8 worker processes against one task after the other",
           quicker("pool-waits", "one-by-one", "graft-pool"), "at least", 6),
    Target("old claim: 6 times the sequential on 8 cores, here in shares of the cores",
           speedup("pool-10ms", "graft-pool"), "at least", 0.75),
    Target("old claim: memory of a pool's processes once they compute", memory_growth("pool-10ms", "graft-pool"),
           "at most", 1.2),
    *(
        Target(f"{what}, {pool} against {whom}", quicker(workload, other, ours), "at least", limit)
        for workload, what in (
            ("plain", "plain tasks in a group"), ("plain-singles", "plain tasks one by one"),
        )
        for pool, ours, other, whom, limit in (
            ("prefork", "hardened-prefork", "celery", "stock", 1.25), ("hardened", "hardened", "celery", "stock", 5),
            ("hardened", "hardened", "huey", "huey", 1.2),
        )
    ),
    Target("one plain task there and back, hardened against stock: time",
           slower("plain-latency", "celery", "hardened"), "at most", 0.4),
    Target("one plain task there and back, hardened against huey: time",
           slower("plain-latency", "huey", "hardened"), "at most", 0.9),
    Target("plain tasks of 5 ms at 80 % load, hardened against stock: median wait",
           slower("load-80", "celery", "hardened"), "at most", 0.5),
    Target("memory of workers, hardened against stock", memory("plain", "celery", "hardened"), "at most", 1.2),
    Target("one job there and back against stock prefork: time", slower("latency", "celery"), "at most", 0.6),
    Target("one job there and back: 99th percentile against median", tail_ratio("latency"), "at most", 3),
    Target("items of 1 ms: efficiency", efficiency("cpu-1ms"), "at least", 95, "%"),
    Target("items of 10 ms: efficiency", efficiency("cpu-10ms"), "at least", 95, "%"),
    Target("items of 10 ms: speed-up in shares of the cores", speedup("cpu-10ms"), "at least", 0.95),
    Target("log-normal durations: efficiency", efficiency("mixed-lognormal"), "at least", 90, "%"),
    Target("log-normal durations: last worker idle", idle_tail("mixed-lognormal"), "at most", 5, "%"),
    Target("1 % a thousand times longer: efficiency", efficiency("mixed-rare"), "at least", 90, "%"),
    Target("1 % a thousand times longer: last worker idle", idle_tail("mixed-rare"), "at most", 5, "%"),
    Target("1,000 I/O items, 50 at once", seconds("io", "graft-io"), "at most", 0.25, "s"),
    Target("1,000 I/O items against the old code in process", slower("io", "asyncio", "graft-io"), "at most", 1.15),
    Target("1,000 single async calls of 1 s", seconds("io-1s", "graft-io"), "at most", 1.5, "s"),
    Target("10,000 single async calls of 1 s", seconds("io-10k", "graft-io"), "at most", 8.0, "s"),
    Target("tiny async calls against stock prefork -c 1", quicker("io-tiny", "celery-1", "graft-io"), "at least", 1.5),
    Target("tiny async calls against taskiq, one process", quicker("io-tiny", "taskiq-1", "graft-io"), "at least", 1),
    Target("tiny async calls against arq, one process", quicker("io-tiny", "arq", "graft-io"), "at least", 1),
    Target("200 × 1 MiB against stock Celery", quicker("payload-1m", "celery"), "at least", 2),
    Target("200 × 1 MiB against the Redis loop: time", slower("payload-1m", "loop"), "at most", 2),
    Target("a million items streamed: cost per item against 20,000", cost_per_item("stream", "noop"), "at most", 1.2),
    Target("a million items streamed: caller grows", extra("stream", "caller_growth", 1 / MIB), "at most", 64, "MiB"),
    Target("a million items streamed: Redis grows", extra("stream", "redis_growth", 1 / MIB), "at most", 64, "MiB"),
    Target(
        "a million waiting: cost per item against an empty queue", cost_per_item("depth-1000000", "depth-0"),
        "at most", 1.2,
    ),
    Target("a command's help: processor time against Celery's own", started("start-help", "cpu"), "at most", 1.1),
    Target("start of a worker: processor time against stock", started("start-worker", "cpu"), "at most", 1.5),
    Target("start of a worker, GRAFT_POOL=prefork: processor time against stock",
           started("start-worker", "cpu", "graft-prefork-programs"), "at most", 1.5),
    Target("memory of an idle worker against stock", started("start-worker", "idle_memory"), "at most", 1.1),
    Target("memory of an idle worker, GRAFT_POOL=prefork, against stock",
           started("start-worker", "idle_memory", "graft-prefork-programs"), "at most", 1.1),
    Target("memory of an idle io worker against stock solo", started("start-io-worker", "idle_memory"),
           "at most", 1.2),
    Target("memory of workers after the run against stock prefork", memory("noop", "celery"), "at most", 1.2),
    Target("memory of an io worker against stock solo", memory("io-tiny", "celery-solo", "graft-io"), "at most", 1.2),
)  # fmt: skip
