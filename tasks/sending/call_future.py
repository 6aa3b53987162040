"""The future of one call, in a module that costs nothing to import."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import PENDING, RUNNING
from typing import TYPE_CHECKING, Any, Protocol

from graft.tasks.errors import CancelledBatchError

if TYPE_CHECKING:
    from graft.tasks.envelope import Outcome

logger = logging.getLogger(__name__)


class Withdrawing(Protocol):
    """Whoever has sent calls, and can have workers not begin one."""

    def withdraw(self, position: int) -> None: ...


class Call(Future[Any]):
    """The future of one call: cancelled before it leaves this process, or skipped by workers that have not begun it."""

    _sent: tuple[Withdrawing, int] | None = None  # By whom, and as which of its calls.
    _is_withdrawn = False

    def begin(self, by: Withdrawing | None = None, position: int = 0) -> bool:
        """Whether the call, which leaves now, is still wanted."""
        with self._condition:
            is_wanted = not self.done() and self.set_running_or_notify_cancel()
            if is_wanted and by is not None:
                self._sent = (by, position)
        return is_wanted

    def cancel(self) -> bool:
        """Cancel the call; whether it is cancelled now.

        One that has been sent is not, since nobody knows here whether it has begun. Workers are asked not to begin it,
        and where none has, the future is cancelled as soon as they say so.
        """
        if super().cancel():
            return True
        sent, self._sent = self._sent, None
        if sent is not None and not self.done():
            self._is_withdrawn = True
            sent[0].withdraw(sent[1])
        return False

    def end(self, outcome: Outcome) -> None:
        """End as *outcome* says, unless it was given up; its callbacks cannot end the thread that receives results."""
        try:
            if self._is_withdrawn and isinstance(outcome.error, CancelledBatchError):
                with self._condition:
                    if self._state == RUNNING:
                        self._state = PENDING
                self.cancel()
            elif outcome.error is not None:
                self.set_exception(outcome.error)
            else:
                self.set_result(outcome.value)
        except InvalidStateError:
            pass
        except BaseException:
            logger.exception("a callback of a future ended with more than an error")
