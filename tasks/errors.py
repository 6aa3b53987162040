"""The error tree. Errors subclass what callers already catch, so old ``except`` clauses keep working."""

from __future__ import annotations


class TaskQueueError(Exception):
    """Base of every error of this project."""


class EnvelopeError(TaskQueueError):
    """An envelope could not be made, opened or answered."""


class EnvelopeLostError(EnvelopeError):
    """An envelope is nowhere any more and has no answer: Redis lost it. Whether it ran is not known."""


class SignatureError(EnvelopeError):
    """A byte string was not signed with a key that this process accepts; it was not unpickled."""


class UnreferenceableError(EnvelopeError, TypeError):
    """A worker can neither import a callable nor receive it by value."""


class UnpicklableError(EnvelopeError, TypeError):
    """An item, an argument or a result cannot be pickled, so it cannot travel."""


class PayloadTooLargeError(EnvelopeError, ValueError):
    """An item or a result is larger than the deployment allows."""


class CancelledBatchError(TaskQueueError):
    """The item was cancelled before it ran."""


class PermanentError(TaskQueueError):
    """Raised by a task that must not be run again, whatever its retry policy says."""


class PoisonedError(PermanentError):
    """The item kept killing the processes that ran it."""


class ProcessExitError(PermanentError):
    """The callable tried to end the worker's process (``sys.exit``, ``KeyboardInterrupt``)."""


class SelfCancelledError(TaskQueueError):
    """A coroutine ended in a cancellation that nobody had asked for."""


class NotYet(TaskQueueError):
    """The call has to wait *wait* seconds before it asks for its turn again; it has not begun."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait

    def __str__(self) -> str:
        return f"its turn has not come; it asks again in {self.wait:.3f} s"


class ItemTimeoutError(TaskQueueError, TimeoutError):
    """One item ran longer than its own time limit."""


class ResultTimeout(TaskQueueError, TimeoutError):
    """The results did not arrive within the time the caller gave."""


class BrokerUnavailable(TaskQueueError, ConnectionError):
    """The broker did not answer in time."""


class RemoteTraceback(Exception):
    """The cause of an error that was raised on a worker: its traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text.rstrip()}"
