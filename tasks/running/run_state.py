"""What is common to all ways in which the items of one envelope run: what they are, and what has come of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from billiard.common import terminate_handler_fired

from graft.tasks.delivery.cancellation import NOTHING, Cancelled
from graft.tasks.envelope import Envelope
from graft.tasks.errors import CancelledBatchError, ProcessExitError
from graft.tasks.running.cancel_watch import Interruption
from graft.tasks.running.item_limits import ItemLimits
from graft.tasks.running.run_outcomes import RunOutcomes
from graft.tasks.running.work_stealing import drained


class ItemRecorder(Protocol):
    """Records each item before it runs and after it has ended, so that an item that kills its process is known."""

    def starting(self, index: int) -> None: ...
    def finished(self, index: int, value: Any, error: BaseException | None) -> None: ...
    def postponed(self, index: int) -> None:
        """It has not begun after all."""


# Called on a helper thread, with the values and errors that there are, and the indexes of those to publish.
PublishEarly = Callable[[Mapping[int, Any], Mapping[int, BaseException], Sequence[int]], None]


@dataclass
class RunState:
    """One run of items of one envelope, whose outcomes it collects."""

    envelope: Envelope
    func: Callable[..., Any]
    recorder: ItemRecorder | None
    publish_early: PublishEarly | None
    limits: ItemLimits | None
    outcomes: RunOutcomes = field(default_factory=RunOutcomes)
    cancelled: Cancelled = NOTHING
    interruption: Interruption = field(default_factory=Interruption)
    unpublished: deque[int] = field(default_factory=deque)  # Indexes of outcomes that were not published early.

    def tell(self) -> None:
        """Publish what has ended since the last time. Called on a helper thread."""
        if self.publish_early is not None and (ended := drained(self.unpublished)):
            self.publish_early(self.outcomes.values, self.outcomes.errors, ended)

    def is_unwanted(self, index: int) -> bool:
        """Whether the item at *index* is cancelled, which is then its outcome."""
        position = self.envelope.positions[index]
        if not self.cancelled.includes(position):
            return False
        self.outcomes.errors[index] = CancelledBatchError(f"item {position} was cancelled before it ran")
        return True


def refused_exit(error: BaseException) -> BaseException:
    """The error an item leaves behind; one that ends this process on the worker's behalf is let through."""
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        if terminate_handler_fired():
            raise error
        refused = ProcessExitError(f"the callable tried to end the worker's process: {type(error).__name__}({error})")
        return refused.with_traceback(error.__traceback__)
    return error
