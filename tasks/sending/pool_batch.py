"""The tasks of a worker pool in one process, and the batch that a burst of them is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from graft.tasks.callables.references import FunctionRef
from graft.tasks.envelope import Outcome
from graft.tasks.results.outcomes import Outcomes, Progress

Destination = Literal["stream", "caller", "nobody"]
CallResult = tuple[Sequence[Outcome], float]  # Of the items of one task, and the seconds that they took.


class Deliver(Protocol):
    """Hears the outcomes of a task, the seconds that they took, and where it ran if that was not on a worker."""

    def __call__(
        self, task: PoolTask, outcomes: Sequence[Outcome], seconds: float = 0.0, slot: int = -1, worker: str = "", /
    ) -> None: ...


@dataclass(slots=True, eq=False, weakref_slot=True)
class PoolTask:
    """A task that the pool has accepted: *function*, for each of ``frames``, which are pickled items.

    A task that stays in this process has a ``call`` instead. Where outcomes go to the stream, or to nobody, ``deliver``
    hears only errors that no worker has reported. ``is_kept``, if any, is set once Redis has it, or never will.
    """

    key: Any
    to: Destination
    deliver: Deliver
    score: float
    timeout: float | None
    function: FunctionRef | None
    frames: Sequence[bytes] = ()
    unpack: bool = False
    call: Callable[[], Sequence[Any]] | None = None
    since: int = field(default_factory=time.time_ns)
    is_kept: threading.Event | None = None
    future: Future[CallResult] | None = None
    cancelled: BaseException | None = None  # Why it was cancelled: what it ends with unless it had ended before.
    ends_running: bool = False  # If it was: it does so although it has begun.

    def ended(self, outcomes: Sequence[Outcome], seconds: float = 0.0, slot: int = -1, worker: str = "") -> None:
        self.deliver(self, outcomes, seconds, slot, worker)

    def note_kept(self) -> None:
        if self.is_kept is not None:
            self.is_kept.set()

    def goes_with(self, other: PoolTask) -> bool:
        """Whether one envelope may hold both."""
        return (
            len(self.frames) == len(other.frames) == 1
            and self.to == other.to
            and self.function == other.function
            and self.unpack == other.unpack
            and self.timeout == other.timeout
        )


class PoolBatch(Outcomes):
    """A burst of a pool's tasks, which has no end of its own."""

    def __init__(self) -> None:
        super().__init__(None)
        self._lock = threading.Lock()
        self._tasks: dict[int, PoolTask] = {}

    def add(self, first: int, task: PoolTask) -> None:
        for position in range(first, first + len(task.frames)):
            self._tasks[position] = task

    def task_at(self, position: int) -> PoolTask | None:
        return self._tasks.get(position)

    def tasks(self) -> set[PoolTask]:
        with self._lock:
            return set(self._tasks.values())

    def give_up(self) -> set[PoolTask]:
        """The tasks without an outcome, which will have none."""
        with self._lock:
            left = set(self._tasks.values())
            self._tasks.clear()
            return left

    def progress(self) -> Progress:
        far = super().progress()
        return replace(far, total=far.done + len(self._tasks))

    def done(self) -> bool:
        return not self._tasks

    def note_ended(self, positions: Sequence[int], failed: int, retries: int) -> None:
        """A worker has delivered the outcomes elsewhere."""
        with self._lock:
            for position in positions:
                self._tasks.pop(position, None)
        self.note_counted(len(positions), failed, retries)

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        self.note_task_outcomes(outcomes, retries)

    def note_task_outcomes(self, outcomes: list[Outcome], retries: int = 0, seconds: float = 0.0) -> None:
        """The same, with the seconds that all of them took together."""
        found: dict[PoolTask, list[Outcome]] = {}
        with self._lock:
            for outcome in outcomes:
                task = self._tasks.pop(outcome.index, None)
                if task is not None:
                    found.setdefault(task, []).append(outcome)
        self.note_counted(len(outcomes), sum(outcome.error is not None for outcome in outcomes), retries)
        for task, its in found.items():
            task.ended(its, seconds * len(its) / len(outcomes))
            task.note_kept()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            positions = list(self._tasks)
        self.note_outcomes([Outcome(position, error=error) for position in positions])
        super().fail(error)
