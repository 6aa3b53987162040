"""The future of one call, in a module that costs nothing to import."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.tasks.envelope import Outcome

logger = logging.getLogger(__name__)


class Call(Future[Any]):
    """The future of one call, which can be cancelled until it begins."""

    def begin(self) -> bool:
        """Whether the call, which leaves now, is still wanted."""
        with self._condition:
            return not self.done() and self.set_running_or_notify_cancel()

    def end(self, outcome: Outcome) -> None:
        """End as *outcome* says, unless it was given up; its callbacks cannot end the thread that receives results."""
        try:
            if outcome.error is not None:
                self.set_exception(outcome.error)
            else:
                self.set_result(outcome.value)
        except InvalidStateError:
            pass
        except BaseException:
            logger.exception("a callback of a future ended with more than an error")
