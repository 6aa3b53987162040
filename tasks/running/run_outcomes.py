"""The outcomes of one run of an envelope, and the decision about what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from graft.tasks.errors import CancelledBatchError, NotYet
from graft.tasks.policy import RetryPolicy


@dataclass
class RunOutcomes:
    """Outcomes of one run, by the item's index in the envelope. ``left`` has the indexes of items not begun.

    ``busy`` is the sum of the items' own durations, ``elapsed`` the time on the clock, both in seconds; ``awaited``
    says that items ran on the event loop. ``seconds`` has the duration of each item where it runs in a worker pool.
    """

    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    busy: float = 0.0
    elapsed: float = 0.0
    awaited: bool = False
    seconds: dict[int, float] = field(default_factory=dict)

    def without(self, indexes: Collection[int]) -> RunOutcomes:
        """The same without the outcomes at *indexes*."""
        return replace(
            self,
            values={index: value for index, value in self.values.items() if index not in indexes},
            errors={index: error for index, error in self.errors.items() if index not in indexes},
        )


@dataclass(frozen=True)
class AfterRun:
    """The consequences of a run.

    By index: ``waits`` has the seconds until items run that their policy retries. ``again`` are all items that run
    again, with those that were not begun. ``exhausted`` are items that have used up their runs. ``failed`` counts items
    that raised, ``retried`` the ones of them that run again. ``postponed`` have not begun: a limit has sent them back.
    """

    waits: Mapping[int, float]
    again: tuple[int, ...]
    exhausted: tuple[int, ...]
    unkept: tuple[int, ...]
    failed: int
    retried: int
    postponed: tuple[int, ...] = ()

    @classmethod
    def decide(
        cls, outcomes: RunOutcomes, policy: RetryPolicy, run: Callable[[int], int], elapsed: float = 0.0
    ) -> AfterRun:
        """Decide what follows from *outcomes*. *run*: the number of an item's run, by index, from 1.

        *elapsed*: seconds since the first run began.
        """
        raised = {
            index: error for index, error in outcomes.errors.items() if not isinstance(error, CancelledBatchError)
        }
        # Whoever waits for its turn under a limit (item_limits.py) has not run: it is no error and no retry.
        found = {
            index: error.wait if isinstance(error, NotYet) else policy.next_wait(run(index), error, elapsed)
            for index, error in raised.items()
        }
        waits = {index: wait for index, wait in found.items() if wait is not None}
        again = tuple(sorted([*waits, *outcomes.left]))
        failed = {index for index, error in outcomes.errors.items() if not isinstance(error, NotYet)}
        ended = tuple(index for index in raised if index not in waits)
        exhausted, unkept = (ended, ()) if policy.runs > 1 and not again else ((), ended)
        postponed = tuple(index for index in raised if index not in failed)
        return cls(waits, again, exhausted, unkept, len(failed), len(failed.intersection(waits)), postponed)

    @property
    def countdown(self) -> float:
        """Seconds until the envelope comes back: after the longest wait of a retry, or the shortest for a limit."""
        retried = [wait for index, wait in self.waits.items() if index not in self.postponed]
        return max(retried, default=min(self.waits.values(), default=0.0))
