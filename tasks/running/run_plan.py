"""What a run of an envelope does with each of its items, decided before the first of them runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from graft.tasks.delivery.run_counter import Delivery
from graft.tasks.envelope import Envelope


@dataclass(frozen=True)
class RunPlan:
    """The items of an envelope, by index, that a run begins; the ``cancelled``; those that have used up their runs.

    ``is_recorded``: a process has died with this envelope, so each item is recorded before it runs and after it.
    """

    begin: tuple[int, ...]
    poisoned: tuple[int, ...]
    cancelled: tuple[int, ...]
    is_recorded: bool

    @classmethod
    def decide(cls, envelope: Envelope, delivery: Delivery, known: Collection[int], run_limit: int) -> RunPlan:
        """Decide what is left to do, where outcomes of the positions *known* are here, or come from other envelopes."""
        positions = envelope.positions
        left = [index for index, position in enumerate(positions) if position not in known]
        poisoned: tuple[int, ...] = ()
        cancelled: tuple[int, ...] = ()
        if delivery.cancelled:
            cancelled = tuple(index for index in left if delivery.cancelled.includes(positions[index]))
            left = [index for index in left if index not in cancelled]
        if delivery.is_watched:
            poisoned = tuple(index for index in left if delivery.is_dead(positions[index], run_limit))
        begin = tuple(index for index in left if index not in poisoned) if poisoned else tuple(left)
        return cls(begin, poisoned, cancelled, delivery.is_watched)
