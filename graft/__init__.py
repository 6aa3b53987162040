"""Work on Celery workers, many items to a message: the public names of celery-graft.

``submit(func, items)`` is the way in for new code; old code imports the facades under ``graft.compat``.
``harden(app)`` gives the same guarantees to the tasks of a Celery project.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.config.harden import harden, undo
    from graft.tasks.batch import Batch
    from graft.tasks.envelope import Outcome
    from graft.tasks.errors import (
        BrokerUnavailable,
        CancelledBatchError,
        EnvelopeError,
        EnvelopeLostError,
        ItemTimeoutError,
        OutOfMemoryError,
        PayloadTooLargeError,
        PermanentError,
        PoisonedError,
        ProcessExitError,
        RemoteTraceback,
        ResultTimeout,
        SelfCancelledError,
        SignatureError,
        TaskQueueError,
        UnpicklableError,
        UnreferenceableError,
    )
    from graft.tasks.policy import ExactWaits, FailedRun, RetryPolicy
    from graft.tasks.results.outcomes import Progress
    from graft.tasks.submit import submit

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "BrokerUnavailable",
    "CancelledBatchError",
    "EnvelopeError",
    "EnvelopeLostError",
    "ExactWaits",
    "FailedRun",
    "ItemTimeoutError",
    "OutOfMemoryError",
    "Outcome",
    "PayloadTooLargeError",
    "PermanentError",
    "PoisonedError",
    "ProcessExitError",
    "Progress",
    "RemoteTraceback",
    "ResultTimeout",
    "RetryPolicy",
    "SelfCancelledError",
    "SignatureError",
    "TaskQueueError",
    "UnpicklableError",
    "UnreferenceableError",
    "__version__",
    "harden",
    "submit",
    "undo",
]

_MODULES = {"submit": "tasks.submit", "Batch": "tasks.batch", "Progress": "tasks.results.outcomes"}
_MODULES |= {"Outcome": "tasks.envelope", "RetryPolicy": "tasks.policy", "ExactWaits": "tasks.policy"}
_MODULES |= {"FailedRun": "tasks.policy"}
_MODULES |= {"harden": "config.harden", "undo": "config.harden"}


def __getattr__(name: str) -> Any:
    # Loaded at the first use, so that `import graft.compat…` does not pay for Celery before anything is sent.
    if name not in __all__:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(import_module(f"graft.{_MODULES.get(name, 'tasks.errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
