"""What a caller of dispatcher.py holds for one call: a standard future, and the standard error of a broken executor."""

from __future__ import annotations

import logging
from concurrent.futures import BrokenExecutor, CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED
from contextlib import suppress
from typing import Any

from graft.tasks.errors import BrokerUnavailable
from graft.tasks.sending.call_future import Call

logger = logging.getLogger(__name__)


class BrokenClusterError(BrokenExecutor, BrokerUnavailable):
    """The broker did not answer, so the call could not be made or its result not be had.

    Later calls try again: an outage fails the calls that it meets, not the executor.
    """


def executor_error(error: BaseException) -> BaseException:
    """*error* as an executor reports it: a broker out of reach is a BrokenExecutor, anything else stays."""
    if isinstance(error, BrokerUnavailable) and not isinstance(error, BrokenExecutor):
        broken = BrokenClusterError(str(error))
        broken.__cause__ = error
        return broken
    return error


class CallFuture(Call):
    """One call. Its carrier, if it has one, is the future of another that makes the call in its place."""

    def __init__(self) -> None:
        super().__init__()
        self._carrier: Future[Any] | None = None

    def follow(self, carrier: Future[Any]) -> None:
        """Become what *carrier* becomes."""
        self._carrier = carrier
        carrier.add_done_callback(self._settle)

    def running(self) -> bool:
        """Whether the call has left this process, or runs in it, and cannot be cancelled any more."""
        carrier = self._carrier
        return super().running() or (carrier is not None and carrier.running() and not self.done())

    def cancel(self) -> bool:
        carrier = self._carrier
        if carrier is not None and not super().running():
            return carrier.cancel()
        is_cancelled = super().cancel()
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()  # Whoever waits for several futures is told here.
        return is_cancelled

    def fail(self, error: BaseException) -> None:
        """End in *error*, unless it has ended."""
        with suppress(InvalidStateError):
            self.set_exception(error)

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception and executor_error(exception))

    def _settle(self, carrier: Future[Any]) -> None:
        try:
            self._become(carrier)
        except InvalidStateError:  # It was given up; see fail.
            pass
        except BaseException:  # A callback asked the process to end; the thread that hears everybody's results stays.
            logger.exception("a callback of a future ended with more than an error")
        # Whoever waits for this future holds no carrier, and a carrier's value must not be kept twice.
        self._carrier = None

    def _become(self, carrier: Future[Any]) -> None:
        if not carrier.cancelled():
            error = carrier.exception()
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(carrier.result())
        elif super().running():
            self.set_exception(CancelledError())
        else:
            self._carrier = None
            self.cancel()
