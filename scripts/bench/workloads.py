"""The workloads as pure descriptions: a function, items made from a seed, and how they are sent."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

Shape = Literal[
    "batch", "singles", "submit", "latency", "bounded", "pool", "callers", "load", "stream", "depth", "start"
]
Kind = Literal["numbers", "same", "lognormal", "rare", "text"]

# A pickled MiB must fit the default limit of one item, which is 1 MiB with the pickle's own few bytes.
ALMOST_A_MEBIBYTE: Final = (1 << 20) - 1024


@dataclass(frozen=True)
class Items:
    """*count* items, the same ones in every process.

    Args:
        unit: of ``same``, ``lognormal`` and ``rare``: seconds of a typical item; of ``text``: characters.
    """

    kind: Kind
    count: int
    unit: float = 0.0
    seed: int = 20_000

    def make(self) -> list[Any]:
        dice = random.Random(self.seed)
        match self.kind:
            case "numbers":
                return list(range(self.count))
            case "same":
                return [self.unit] * self.count
            case "lognormal":
                # Mean equal to the unit: e**(mu + sigma**2/2), with sigma 1.
                return [self.unit * dice.lognormvariate(-0.5, 1.0) for _ in range(self.count)]
            case "rare":
                long = set(dice.sample(range(self.count), max(1, self.count // 100)))
                return [self.unit * (1000 if index in long else 1) for index in range(self.count)]
            case "text":
                size = int(self.unit)
                body = dice.randbytes(size // 2 + 8).hex()
                return [f"{index:08d}{body}"[:size] for index in range(self.count)]

    def stream(self) -> Iterator[Any]:
        """The same items one by one, where holding them all would spoil a measurement of memory."""
        return iter(range(self.count)) if self.kind == "numbers" else iter(self.make())


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    Args:
        shape: ``batch``: all items in one call, all results at once. ``singles``: a call and a future for each item.
            ``submit``: the same, timing the inside of each call. ``latency``: one call at a time, there and back.
            ``bounded``: a batch with at most 50 items under way. ``pool``: a call for each item, of which at most 220
            are under way: what a pool of 20 workers with a queue of 200 holds. ``callers``: eight threads, each of
            which makes one call at a time. ``load``: a call whenever the next is due, by chance, so often that its work
            is a share of what the cores can do; timed from then until it begins. ``stream``: an iterator in, one out.
            ``depth``: a batch that waits in the queue as a whole before the workers may begin. ``start``: nothing is
            sent, a program is started.
        concurrency: worker processes (of the io lane: items at once), 0 for one process per core.
        only: contenders that take part; everyone who can, unless given.
        repeat: repetitions, where they differ from the run's.
        load: that share.
        whole: never run in part: the figure means something only for all of the items.
        patience: multiplies the run's budget, where scaling would be unfair: what a group costs is not in proportion.
    """

    name: str
    title: str
    shape: Shape
    function: str
    items: Items
    only: tuple[str, ...] = ()
    group: str = ""
    batch_size: int | None = None
    in_flight: int | None = None
    concurrency: int = 0
    repeat: int | None = None
    patience: float = 1.0
    load: float = 0.0
    whole: bool = False

    def of(self, count: int) -> Workload:
        """The same with fewer items, for those who would take too long."""
        return self if count >= self.items.count else replace(self, items=replace(self.items, count=count))

    @property
    def subject(self) -> str:
        """The workload in words."""
        return self.title.format(n=f"{self.items.count:,}")

    @property
    def is_work(self) -> bool:
        """True if items need processor time, so that an efficiency can be computed."""
        return self.function == "spin"

    def check(self, items: Sequence[Any], results: Sequence[Any]) -> str:
        """The error in *results*, or ""."""
        if len(results) != len(items):
            return f"{len(results)} results for {len(items)} items"
        for position, (item, result) in enumerate(zip(items, results, strict=True)):
            value = result[0] if self.function == "spin" else result
            if value != item:
                return f"item {position} came back as {str(value)[:60]!r} instead of {str(item)[:60]!r}"
        return ""


NOOP_SCALE: Final = (10, 100, 1_000, 10_000)
POOLS: Final = ("ppe", "mp")
PLAIN: Final = ("hardened", "hardened-prefork", "celery", "huey")
PLACED: Final = ("graft-pool", "celery", "ppe")
PROGRAMS: Final = ("graft-programs", "celery-programs")
LANES: Final = ("graft-io", "graft-cpu")
BULK: Final = ("graft", "celery", "chunks", "loop", "loop-batched", "loop-bare", *POOLS, "joblib")


def catalogue(quick: bool = False, cores: int = 2) -> list[Workload]:
    """Every workload; *quick* ones are small enough for a test and prove nothing about speed."""

    def size(full: int, small: int) -> int:
        return small if quick else full

    def numbers(full: int, small: int) -> Items:
        return Items("numbers", size(full, small))

    def spins(kind: Kind, full: int, small: int, seconds: float) -> Items:
        return Items(kind, size(full, small), seconds / (10 if quick else 1))

    found = [
        Workload("noop", "{n} no-op items in one batch", "batch", "noop", numbers(20_000, 200), patience=3.0),
        Workload("singles", "{n} no-op calls, each with its own future", "singles", "noop", numbers(20_000, 100),
                 patience=3.0),
        Workload("submit", "inside the submit call", "submit", "noop", numbers(5_000, 50)),
        Workload("latency", "one job there and back, idle queue", "latency", "noop", numbers(1_000, 20)),
        Workload("cpu-100us", "{n} items of 0.1 ms", "batch", "spin", spins("same", 20_000, 50, 1e-4), group="cpu"),
        Workload("cpu-1ms", "{n} items of 1 ms", "batch", "spin", spins("same", 2_000, 20, 1e-3), group="cpu",
                 whole=True),
        Workload("cpu-10ms", "{n} items of 10 ms", "batch", "spin", spins("same", 2_000, 10, 1e-2),
                 ("graft", "celery", "chunks", "loop-batched", "ppe"), "cpu", whole=True),
        Workload(
            "mixed-lognormal", "{n} items, 2 ms on average, log-normal", "batch", "spin",
            spins("lognormal", 2_000, 20, 2e-3), BULK, "cpu", whole=True,
        ),
        Workload(
            "mixed-rare", "{n} items of 0.2 ms, 1 % of them 1,000 times longer", "batch", "spin",
            spins("rare", 2_000, 20, 2e-4), BULK, "cpu", whole=True,
        ),
        Workload("plain", "{n} plain no-op tasks as a group", "batch", "noop", numbers(5_000, 50), PLAIN, "plain",
                 patience=3.0),
        Workload("plain-singles", "{n} plain no-op tasks, delay() and get()", "singles", "noop", numbers(5_000, 50),
                 PLAIN, "plain", patience=3.0),
        Workload("plain-latency", "one plain task there and back", "latency", "noop", numbers(500, 20), PLAIN, "plain"),
        Workload("plain-callers", "{n} plain tasks, eight callers that wait for each", "callers", "noop",
                 numbers(2_000, 50), PLAIN, "plain", patience=3.0),
        *(
            Workload(f"load-{percent}", f"{{n}} plain tasks of 5 ms at {percent} % load: waiting", "load", "spin",
                     spins("same", 1_000, 20, 5e-3), PLAIN, "load", load=percent / 100, whole=True)
            for percent in (50, 80)
        ),
        Workload("pool", "{n} no-op tasks through a pool of 20 with a queue of 200", "pool", "noop",
                 numbers(20_000, 300), PLACED, "pool", patience=3.0),
        Workload("pool-submit", "inside the submitting call of a pool", "submit", "noop", numbers(5_000, 50),
                 PLACED, "pool"),
        Workload("pool-10ms", "{n} tasks of 10 ms through the same pool", "pool", "spin",
                 spins("same", 1_000, 10, 1e-2), PLACED, "pool", whole=True),
        Workload("pool-waits", "{n} tasks that wait 10 ms, in 8 worker processes", "pool", "pause",
                 Items("same", size(1_000, 20), 0.01), ("graft-pool", "ppe", "one-by-one"), "pool", concurrency=8,
                 whole=True),
        Workload("io", "{n} items of 10 ms of waiting, 50 at once", "bounded", "nap",
                 Items("same", size(1_000, 100), 0.01), ("graft-io", "asyncio", "taskiq-1", "arq"), whole=True),
        Workload("io-1s", "{n} single async calls of 1 s, one process", "singles", "nap",
                 Items("same", size(1_000, 20), 1.0 if not quick else 0.05), ("graft-io", "taskiq-1", "arq"), "io",
                 whole=True),
        Workload("io-10k", "{n} single async calls of 1 s, one process", "singles", "nap",
                 Items("same", size(10_000, 40), 1.0 if not quick else 0.05), ("graft-io",), "io", repeat=2,
                 whole=True),
        Workload("io-tiny", "{n} tiny async calls, one process", "singles", "anoop",
                 numbers(5_000, 50), ("graft-io", "celery-1", "celery-solo", "taskiq-1", "arq"), "io"),
        *(
            Workload(f"lane-{label}", text, "batch", function, Items("same", size(2_000, 20), seconds), LANES, "lanes",
                     whole=True)
            for label, text, function, seconds in (
                ("coroutines", "{n} coroutines that wait 10 ms, on either lane", "nap", 0.01),
                ("blocking", "{n} plain functions that wait 10 ms, on either lane", "pause", 0.01),
                ("computing", "{n} plain functions that compute 1 ms, on either lane", "spin", 0.001),
            )
        ),
        *(
            Workload(f"payload-{label}", "{n} payloads of " + text + " there and back", "batch", "noop",
                     Items("text", size(200 if characters > 100_000 else 1_000, 10), characters),
                     ("graft", "celery", "huey", "loop", "loop-batched", *POOLS), "payload")
            for label, text, characters in (
                ("1k", "1 KiB", 1024), ("32k", "32 KiB", 32 << 10), ("1m", "1 MiB", ALMOST_A_MEBIBYTE),
            )
        ),
        Workload("stream", "{n} items streamed", "stream", "noop", numbers(1_000_000, 2_000), ("graft",), repeat=1),
        *(
            Workload(f"size-{many}", f"{{n}} no-op items, {many} per envelope", "batch", "noop", numbers(20_000, 200),
                     ("graft", "chunks"), "batch size", batch_size=many)
            for many in (NOOP_SCALE[:2] if quick else NOOP_SCALE)
        ),
        *(
            Workload(f"depth-{many}", "{n} items waiting, then run" if many else "{n} items, empty queue",
                     "depth" if many else "batch", "noop", Items("numbers", many or size(20_000, 200)), ("graft",),
                     "depth", batch_size=100, in_flight=max(1, many // 100) if many else None, repeat=3)
            for many in ((0, 1_000) if quick else (0, 20_000, 100_000, 1_000_000))
        ),
        *(
            Workload(f"workers-{many}", f"{{n}} items of 1 ms, {many} worker process" + "es" * (many > 1), "batch",
                     "spin", spins("same", 2_000, 20, 1e-3), ("graft", "celery", "ppe"), "scaling", concurrency=many,
                     whole=True)
            for many in range(1, cores + 1)
        ),
        *(
            Workload(f"start-{function}", text, "start", function, Items("numbers", 1), (*PROGRAMS, *others), "start")
            for function, text, others in (
                ("help", "the help of a command", ()),
                ("worker", "a worker until it is ready, one process per core", ("graft-prefork-programs",)),
                ("io-worker", "a worker of the io lane until it is ready, and solo", ()),
            )
        ),
    ]  # fmt: skip
    return [workload if workload.group else replace(workload, group=workload.name) for workload in found]


def choose(workloads: Sequence[Workload], names: Sequence[str]) -> list[Workload]:
    """The workloads with these names or groups, in their own order.

    Raises:
        ValueError: one of the names is unknown.
    """
    known = {workload.name for workload in workloads} | {workload.group for workload in workloads}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no workload {name!r}; there are {', '.join(sorted(known))}")
    return [workload for workload in workloads if not names or {workload.name, workload.group} & set(names)]
