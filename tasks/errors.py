"""The error tree. Errors subclass what callers already catch, so old ``except`` clauses keep working."""

from __future__ import annotations

from pickle import PicklingError


class TaskQueueError(Exception):
    """Base of every error of this project."""


class EnvelopeError(TaskQueueError):
    """An envelope could not be made, opened or answered."""


class EnvelopeLostError(EnvelopeError):
    """Redis lost an envelope, and it was sent again in vain. Whether it ran is not known."""


class SignatureError(EnvelopeError):
    """The signature of a byte string does not verify with the keys of this process. Nothing was unpickled."""


class UnreferenceableError(EnvelopeError, PicklingError, TypeError):
    """A worker can neither import a callable nor receive a copy of it. Define it at the top level of a module."""


class UnpicklableError(EnvelopeError, PicklingError, TypeError):
    """An item, an argument or a result cannot be pickled, so it cannot be sent."""


class PayloadTooLargeError(EnvelopeError, ValueError):
    """An item or a result is larger than ``GRAFT_ITEM_LIMIT``."""


class CancelledBatchError(TaskQueueError):
    """The item was cancelled: by ``Batch.cancel``, a cancelled ``await``, ``batch cancel`` or ``queue purge``."""


class PermanentError(TaskQueueError):
    """The item must not run again, whatever its retry policy says. Raise it in your own function."""


class PoisonedError(PermanentError):
    """The item was running each time when ``GRAFT_RUN_LIMIT`` worker processes died. It is a dead letter."""


class ProcessExitError(PermanentError):
    """The function tried to end the worker's process (``sys.exit``, ``KeyboardInterrupt``)."""


class GuestRefusedError(PermanentError):
    """A worker has no folder, module or Python as the program has them, so that its pool cannot run there."""


class SelfCancelledError(TaskQueueError):
    """A coroutine ended in a cancellation that nobody had asked for."""


class NotYet(TaskQueueError):
    """The call has to wait *wait* seconds for *what* before it asks for its turn again; it has not begun."""

    def __init__(self, wait: float, what: str = "its turn") -> None:
        super().__init__(wait, what)
        self.wait = wait
        self.what = what

    def __str__(self) -> str:
        return f"waits for {self.what}, and asks again in {self.wait:.3f} s"


class OutOfMemoryError(TaskQueueError):
    """A task of its own raised MemoryError. Raised as it is, that would end the worker."""


class ItemTimeoutError(TaskQueueError, TimeoutError):
    """The item ran longer than its ``timeout``."""


class ResultTimeout(TaskQueueError, TimeoutError):
    """The results did not arrive within the caller's ``timeout``. The batch goes on."""


class UnknownBatchError(TaskQueueError, LookupError):
    """No durable batch has this id or name: it has expired, was forgotten, or never was."""


class BatchExistsError(TaskQueueError, ValueError):
    """The name belongs to a durable batch of another callable, or with other items."""


class BrokerUnavailable(TaskQueueError, ConnectionError):
    """The broker did not answer within ``GRAFT_CONNECT_TIMEOUT``. The message names its address."""


class RemoteTraceback(Exception):
    """The ``__cause__`` of an error that was raised on a worker.

    Attributes:
        text: the traceback on the worker.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text.rstrip()}"
