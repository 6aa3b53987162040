"""A map over items whose number is known, for plain threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from graft.tasks.batch import Batch
from graft.tasks.envelope import Outcome
from graft.tasks.ids import new_id


class MapCall(Batch):
    """The items' outcomes, dropped as they are taken; ``ended`` is done once every item has one.

    *is_here*: the items run in this process, so a task may wait for them.
    """

    def __init__(self, total: int, *, is_here: bool) -> None:
        super().__init__(new_id(), total)
        self.total = total
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()
        self._is_here = is_here
        self._is_told = False
        self._tell()

    def take(self, position: int, timeout: float | None = None) -> Outcome:
        """The outcome of the item at *position*, which is then forgotten.

        Raises:
            ResultTimeout: it had not arrived after *timeout* seconds.
            BrokerUnavailable: it will not arrive.
        """
        self._wait(lambda: self._can_tell(position), timeout)
        with self._changed:
            outcome = self._take(position, keep=False)
            if outcome is None:
                raise self._fatal or LookupError(f"the outcome of item {position} has been taken")
            return outcome

    def values(self) -> list[Any]:
        """Wait for every item; all values in order, which are then forgotten, or else the error that came first."""
        self._wait(lambda: self._is_over, None)
        with self._changed:
            error = self._fatal or self._first_error
            if error is not None:
                raise error
            return [self._results.pop(position) for position in range(self.total)]

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        super().note_outcomes(outcomes, retries)
        self._tell()

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        super().note_values(positions, values, retries)
        self._tell()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            if self._is_told or not self._is_over:
                return
            self._is_told = True
        self.ended.set_result(None)

    def _refuse_in_tasks(self) -> None:
        if not self._is_here:
            super()._refuse_in_tasks()
