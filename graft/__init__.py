"""Work on Celery workers, many items to a message: the public names of celery-graft.

``submit(func, items)`` is the way in for new code. Old code imports the facades under ``graft.compat``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.tasks.batch import Batch
    from graft.tasks.envelope import Outcome
    from graft.tasks.errors import (
        BrokerUnavailable,
        CancelledBatchError,
        EnvelopeError,
        EnvelopeLostError,
        ItemTimeoutError,
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
    from graft.tasks.policy import ExactWaits, RetryPolicy
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
    "ItemTimeoutError",
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
    "submit",
]

_MODULES = {"submit": "submit", "Batch": "batch", "Progress": "results.outcomes", "Outcome": "envelope"}
_MODULES |= {"RetryPolicy": "policy", "ExactWaits": "policy"}


def __getattr__(name: str) -> Any:
    # Loaded at the first use, so that `import graft.compat…` does not pay for Celery before anything is sent.
    if name not in __all__:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(import_module(f"graft.tasks.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
