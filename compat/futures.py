"""The future of a call that dispatcher.py makes, and the standard error of a broken executor."""

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
    """The broker did not answer: the call could not be made, or its result not be fetched.

    The executor is not broken for good: later calls try again.
    """


def executor_error(error: BaseException) -> BaseException:
    """*error* as an executor reports it: BrokerUnavailable becomes a BrokenExecutor, any other error stays."""
    if isinstance(error, BrokerUnavailable) and not isinstance(error, BrokenExecutor):
        broken = BrokenClusterError(str(error))
        broken.__cause__ = error
        return broken
    return error


class CallFuture(Call):
    """The future of one call. It may have a carrier: another future, whose result it takes over."""

    def __init__(self) -> None:
        super().__init__()
        self._carrier: Future[Any] | None = None

    def follow(self, carrier: Future[Any]) -> None:
        """Take over the result of *carrier*."""
        self._carrier = carrier
        carrier.add_done_callback(self._settle)

    def running(self) -> bool:
        """Whether the call was sent, or runs in this process, and can no longer be cancelled."""
        carrier = self._carrier
        return super().running() or (carrier is not None and carrier.running() and not self.done())

    def cancel(self) -> bool:
        carrier = self._carrier
        if carrier is not None and not super().running():
            return carrier.cancel()
        is_cancelled = super().cancel()
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()  # Wakes those who wait for several futures.
        return is_cancelled

    def fail(self, error: BaseException) -> None:
        """End in *error*, unless the call has ended."""
        with suppress(InvalidStateError):
            self.set_exception(error)

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception and executor_error(exception))

    def _settle(self, carrier: Future[Any]) -> None:
        try:
            self._become(carrier)
        except InvalidStateError:  # The call was abandoned; see fail.
            pass
        except BaseException:  # A callback wants the process to end; the thread that receives all results goes on.
            logger.exception("a callback of a future ended with more than an error")
        # A carrier's value must not be kept twice.
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
