"""The pools' errors. The texts are part of the contract; programs compare them."""

from __future__ import annotations

import queue
from typing import ClassVar


class WorkerPoolError(Exception):
    """Base of the pools' errors; ``str(error)`` is exactly the old text."""

    text: ClassVar[str] = "worker pool error"

    def __init__(self, text: str | None = None) -> None:
        super().__init__(self.text if text is None else text)


class QueueFullError(WorkerPoolError, queue.Full):
    """``queue_size`` tasks are waiting already."""

    text = "task queue is full"


class SubmitTimeoutError(WorkerPoolError, TimeoutError):
    """No place in the queue came free in time."""

    text = "submit timeout"


class ShutdownTimeoutError(WorkerPoolError, TimeoutError):
    """Not everything was finished in time; what waited has been dropped."""

    text = "shutdown timeout"


class ForceShutdownTimeoutError(ShutdownTimeoutError):
    """Something still ran after it had been told to stop."""

    text = "force shutdown timeout"


class PoolClosedError(WorkerPoolError):
    """A shutdown has begun."""

    text = "worker pool is closed"


class ContextError(WorkerPoolError):
    """The context of a task has ended."""


class ContextCancelledError(ContextError):
    """Somebody cancelled it."""

    text = "context canceled"


class DeadlineExceededError(ContextError, TimeoutError):
    """Its time is over."""

    text = "context deadline exceeded"


class ParallelError(Exception):
    """Base of what the asynchronous calls raise; the kinds are attributes, as they were variants."""

    TaskFailed: ClassVar[type[TaskFailed]]
    TaskCancelled: ClassVar[type[TaskCancelled]]
    JoinError: ClassVar[type[JoinError]]


class TaskFailed(ParallelError):
    """The function raised; its error is ``__cause__``."""

    def __init__(self, text: object) -> None:
        super().__init__(f"Task processing failed: {text}")


class TaskCancelled(ParallelError):
    """The work was revoked or dropped, or its answer will never come."""

    def __init__(self) -> None:
        super().__init__("Task was cancelled")


class JoinError(ParallelError):
    """The worker process died, or could not be reached."""

    def __init__(self, text: object) -> None:
        super().__init__(f"Join error: {text}")


ParallelError.TaskFailed = TaskFailed
ParallelError.TaskCancelled = TaskCancelled
ParallelError.JoinError = JoinError
