"""A map over items whose number is known, for plain threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from graft.tasks.batch import refuse_to_wait_in_a_task
from graft.tasks.envelope import Outcome
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.results.progress_bar import progress_bar


class MapCall(Outcomes):
    """The items' outcomes, dropped as they are taken; ``ended`` is done once every item has one.

    *is_here*: the items run in this process, so a task may wait for them.
    """

    total: int

    def __init__(self, total: int, *, is_here: bool) -> None:
        super().__init__(total)
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()
        self._is_end_noted = False
        self.on_cancel: Callable[[], None] | None = None
        self._is_here = is_here
        self._note_end()

    def result_of(self, position: int, timeout: float | None = None) -> Outcome:
        """The outcome of the item at *position*, which is then forgotten.

        Raises:
            ResultTimeout: it had not arrived after *timeout* seconds.
            BrokerUnavailable: it will not arrive.
        """
        self._wait(lambda: self.has(position) or self.is_over, timeout)
        outcome = self.take(position, keep=False)
        if outcome is None:
            raise self.fatal or LookupError(f"the outcome of item {position} has been taken")
        return outcome

    def collect(self) -> list[Any]:
        """Wait for every item; all values in order, which are then forgotten, or else the error that came first."""
        self._wait(lambda: self.is_over, None)
        error = self.fatal or self.first_error
        if error is not None:
            raise error
        return self.values(keep=False)

    def bar(self) -> AbstractContextManager[None]:
        """Show how far it is, where the environment asks for that."""
        return progress_bar(self)

    def cancel(self) -> None:
        """Keep what has not begun from running."""
        if self.on_cancel is not None and not self.done():
            self.on_cancel()

    def note_outcomes(self, outcomes: list[Outcome], retries: int = 0) -> None:
        super().note_outcomes(outcomes, retries)
        self._note_end()

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        super().note_values(positions, values, retries)
        self._note_end()

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._note_end()

    def _note_end(self) -> None:
        with self.changed:
            if self._is_end_noted or not self.is_over:
                return
            self._is_end_noted = True
        self.ended.set_result(None)  # Without the lock: this calls the callbacks of whoever waits.

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        if not self._is_here:
            refuse_to_wait_in_a_task(self)
        self.wait(ready, timeout)
