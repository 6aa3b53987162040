"""The queue table: which queues exist, which lane reads them, and how old priorities map onto the broker's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Lane = Literal["cpu", "io"]

# The Redis transport takes 0 first, and a message without a priority counts as 0 (kombu/transport/virtual/base.py).
PRIORITY_STEPS: Final = tuple(range(10))
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


def names(lane: Lane | None = None) -> list[str]:
    """The queues that *lane* reads, or all of them."""
    return [queue.name for queue in QUEUES if lane is None or queue.lane == lane]


def broker_priority(priority: float) -> int:
    """The broker's step for an old priority: larger goes first in old programs, 0 goes first on the broker.

    Old priorities have no bounds; 5 and above share the most urgent step, -4 and below the least urgent.
    """
    if math.isnan(priority):
        raise ValueError(f"priority must be a number, not {priority!r}")
    return int(min(max(MIDDLE_PRIORITY - priority, PRIORITY_STEPS[0]), PRIORITY_STEPS[-1]))
