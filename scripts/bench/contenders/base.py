"""The interface of a contender. The runner holds the clock: no method here measures anything."""

from __future__ import annotations

import importlib.metadata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from graft.config.queues import Lane
from graft.scripts.bench.work import FUNCTIONS, REDIS_URL
from graft.scripts.bench.workloads import Shape

PROCESSES = "GRAFT_BENCH_PROCESSES"
ADDRESSES = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")  # Celery prefers them to what an app says itself.


@dataclass(frozen=True)
class ContenderSetup:
    """The setup of a contender: its own database of the run's Redis, and how many items its workers run at once."""

    redis_url: str
    concurrency: int
    env: Mapping[str, str] = field(default_factory=dict)


class Starter(Protocol):
    """Starts the programs of a contender. They end with the run, also when it is killed."""

    def start(self, argv: Sequence[str], env: Mapping[str, str], copies: int = 1) -> None:
        """Start a program, or several of the same."""

    def worker(self, lane: Lane, concurrency: int, env: Mapping[str, str]) -> None:
        """Start a worker of ours."""


class Contender:
    """One way of having many small things done elsewhere.

    ``start`` is called where the run is steered, everything else in a process of the contender's own. Items go in as
    they are, results come back in the order of the items.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # Distributions that must be installed.
    shapes: ClassVar[frozenset[Shape]]
    functions: ClassVar[frozenset[str]] = frozenset({"noop", "spin"})
    is_peer: ClassVar[bool] = False  # Another task queue, among which the best is looked for.

    def __init__(self, setup: ContenderSetup) -> None:
        self.setup = setup

    @classmethod
    def missing(cls) -> list[str]:
        """Packages that would have to be installed."""
        return [name for name in cls.needs if version_of(name) is None]

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its programs, and of its caller."""
        own = {REDIS_URL: self.setup.redis_url, PROCESSES: str(self.setup.concurrency)}
        return {**self.setup.env, **own, **dict.fromkeys(ADDRESSES, self.setup.redis_url)}

    def start(self, starter: Starter) -> None:
        """Start the worker programs, if there are any."""

    def open(self) -> None:
        """Connect, in the process of the caller."""

    def close(self) -> None:
        """Let go."""

    def prepare(self, function: str, items: Sequence[Any], *, batch_size: int | None, in_flight: int | None) -> None:
        """Choose the best settings for what comes; may run it."""

    def batch(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        """All of them in one call."""
        raise NotImplementedError

    def submit(self, function: str, item: Any) -> Any:
        """One call; something that ``gather`` takes."""
        raise NotImplementedError

    def gather(self, handles: Sequence[Any]) -> Sequence[Any]:
        """The results of single calls."""
        raise NotImplementedError

    def singles(self, function: str, items: Sequence[Any]) -> Sequence[Any]:
        """A call and a handle for each item, then all results."""
        return self.gather([self.submit(function, item) for item in items])

    def one(self, function: str, item: Any) -> Any:
        """One call, there and back."""
        return self.gather([self.submit(function, item)])[0]

    def bounded(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        """A batch of which at most *at_once* are under way."""
        raise NotImplementedError

    def pooled(self, function: str, items: Sequence[Any], at_once: int) -> Sequence[Any]:
        """A call for each item, of which at most *at_once* are under way."""
        results: list[Any] = []
        handles: deque[Any] = deque()
        for item in items:
            if len(handles) >= at_once:
                results += self.gather([handles.popleft()])
            handles.append(self.submit(function, item))
        return [*results, *self.gather(handles)]

    def started(self, function: str) -> Mapping[str, float]:
        """Start a program and end it; ``seconds`` and ``cpu`` until it was ready, ``idle_memory`` if it stayed."""
        raise NotImplementedError

    def stream(self, function: str, items: Iterator[Any]) -> Iterator[Any]:
        """An iterator in, an iterator out."""
        raise NotImplementedError

    def held(self, function: str, items: Sequence[Any]) -> Any:
        """Begin a batch that no worker may touch yet; returns a handle once all of it waits in the queue."""
        raise NotImplementedError


def callable_of(name: str) -> Any:
    return FUNCTIONS[name]


def version_of(distribution: str) -> str | None:
    """The installed version, if any. The modules themselves are not asked: finding some of them means loading them."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
