"""The future of a call that dispatcher.py makes, and the standard error of a broken executor."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, InvalidStateError
from concurrent.futures._base import CANCELLED
from contextlib import suppress

from graft.tasks.errors import BrokerUnavailable
from graft.tasks.sending.call_future import Call


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
    """The future of one call of an executor or pool. It is running once the call is sent, or runs in this process."""

    def cancel(self) -> bool:
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
