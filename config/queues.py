"""The queue table: which queues there are, which one takes what, and how old priorities map onto the broker's.

Our own deployment has the seven queues below, and those of ``GRAFT_QUEUES``. A project's app has the queues that it
declares. :func:`table` is that of the process's app, whichever that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from graft.config.deployment import app, part
from graft.config.validation import number

Lane = Literal["cpu", "io"]

# The Redis transport takes 0 first, and a message without a priority counts as 0 (kombu/transport/virtual/base.py).
PRIORITY_STEPS: Final = tuple(range(10))
KOMBU_STEPS: Final = (0, 3, 6, 9)
MIDDLE_PRIORITY: Final = 5


@dataclass(frozen=True)
class QueueSpec:
    """One queue, and the lane whose workers read it."""

    name: str
    lane: Lane
    purpose: str


# In the order in which an idle worker looks at them when priorities are equal.
QUEUES: Final = (
    QueueSpec("maintenance", "cpu", "periodic checks: they run when everything else is stuck"),
    QueueSpec("high", "cpu", "urgent single tasks"),
    QueueSpec("default", "cpu", "tasks that name no queue"),
    QueueSpec("batch", "cpu", "envelopes of plain callables"),
    QueueSpec("io", "io", "envelopes of async callables"),
    QueueSpec("low", "cpu", "single tasks that can wait"),
    QueueSpec("heavy", "cpu", "long computations"),
)

OURS: Final = frozenset({"batch", "io", "maintenance"})
GUEST: Final = "graft"  # The queue of our own messages in an app that does not declare the three.


@dataclass(frozen=True)
class QueueTable:
    """The queues of an app; ``batch``, ``io`` and ``maintenance`` are those that take our own messages.

    ``steps`` are the priorities that the broker tells apart. A queue of another name is made at its first use where it
    ``may_be_made``.
    """

    names: tuple[str, ...]
    default: str
    batch: str
    io: str
    maintenance: str
    steps: tuple[int, ...]
    may_be_made: bool

    def accepts(self, queue: object) -> bool:
        """Whether something may be sent to *queue*."""
        return queue in self.names or (self.may_be_made and isinstance(queue, str) and bool(queue))

    def checked(self, queue: str) -> str:
        """*queue*, if it accepts messages.

        Raises:
            ValueError: it is not declared, and this app makes no queues on demand.
        """
        if not self.accepts(queue):
            raise ValueError(f"there is no queue {queue!r}; there are {', '.join(self.names)}")
        return queue


def table() -> QueueTable:
    """The queues of this process's app."""
    return part(_table)


def _table() -> QueueTable:
    conf = app().conf
    options: dict[str, Any] = conf.broker_transport_options or {}
    names = dict.fromkeys([*app().amqp.queues, conf.task_default_queue])
    # In a project's app they have a queue to themselves: stock workers of the project do not know our tasks.
    batch, io, maintenance = ("batch", "io", "maintenance") if names.keys() >= OURS else (GUEST,) * 3
    return QueueTable(
        tuple(dict.fromkeys([*names, batch])), conf.task_default_queue, batch, io, maintenance,
        tuple(sorted(options.get("priority_steps") or KOMBU_STEPS)), bool(conf.task_create_missing_queues),
    )  # fmt: skip


def own_queues(further: str = "") -> tuple[QueueSpec, ...]:
    """The queues of our own app: the seven, and those of *further*, as ``GRAFT_QUEUES`` has them."""
    known = {queue.name for queue in QUEUES}
    names = dict.fromkeys(name.strip() for name in further.split(","))
    return (
        *QUEUES,
        *(QueueSpec(name, "cpu", "yours, from GRAFT_QUEUES") for name in names if name not in {"", *known}),
    )


def lane_of(queue: str) -> Lane:
    """The lane whose workers read *queue*; only envelopes of coroutines have a lane of their own."""
    return next((spec.lane for spec in QUEUES if spec.name == queue), "cpu")


def own_names(lane: Lane | None = None, further: str = "") -> list[str]:
    """The names of :func:`own_queues` that *lane* reads, or all of them."""
    return [queue.name for queue in own_queues(further) if lane is None or queue.lane == lane]


def purpose(queue: str) -> str:
    """What *queue* is for, where we know."""
    return next((spec.purpose for spec in QUEUES if spec.name == queue), "")


def broker_priority(priority: float) -> int:
    """The broker's step for an old priority: larger goes first in old programs, 0 goes first on the broker.

    Old priorities have no bounds; 5 and above share the most urgent step, -4 and below the least urgent.
    """
    return int(min(max(MIDDLE_PRIORITY - number("priority", priority), PRIORITY_STEPS[0]), PRIORITY_STEPS[-1]))
