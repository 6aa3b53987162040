"""Work on Celery workers, many items to a message: the public names of celery-graft.

``submit(func, items)`` is the way in for new code; old code imports the facades under ``graft.compat``.
``harden(app)`` gives the same guarantees to the tasks of a Celery project.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.compat.executor import BrokenClusterError, CeleryExecutor
    from graft.compat.pool import Pool, register_joblib
    from graft.config.harden import HardenError, harden, undo
    from graft.config.settings import SettingsError
    from graft.tasks.base import ReliableTask
    from graft.tasks.batch import Batch
    from graft.tasks.durable.sources import JsonLines, Pages
    from graft.tasks.durable_batch import BatchSummary, DurableBatch, batch
    from graft.tasks.envelope import Outcome
    from graft.tasks.errors import (
        BatchExistsError,
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
        UnknownBatchError,
        UnpicklableError,
        UnreferenceableError,
    )
    from graft.tasks.local_run import local_letters
    from graft.tasks.policy import ExactWaits, FailedRun, RetryPolicy
    from graft.tasks.results.call_status import status_of
    from graft.tasks.results.outcomes import Progress
    from graft.tasks.shared.circuit_breaker import BreakerRules
    from graft.tasks.shared.limit import limit
    from graft.tasks.shared.limit_events import LimitEvent
    from graft.tasks.shared.primitive import DifferentLimitsError
    from graft.tasks.submit import submit

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "BatchExistsError",
    "BatchSummary",
    "BreakerRules",
    "BrokenClusterError",
    "BrokerUnavailable",
    "CancelledBatchError",
    "CeleryExecutor",
    "DifferentLimitsError",
    "DurableBatch",
    "EnvelopeError",
    "EnvelopeLostError",
    "ExactWaits",
    "FailedRun",
    "HardenError",
    "ItemTimeoutError",
    "JsonLines",
    "LimitEvent",
    "OutOfMemoryError",
    "Outcome",
    "Pages",
    "PayloadTooLargeError",
    "PermanentError",
    "PoisonedError",
    "Pool",
    "ProcessExitError",
    "Progress",
    "ReliableTask",
    "RemoteTraceback",
    "ResultTimeout",
    "RetryPolicy",
    "SelfCancelledError",
    "SettingsError",
    "SignatureError",
    "TaskQueueError",
    "UnknownBatchError",
    "UnpicklableError",
    "UnreferenceableError",
    "__version__",
    "batch",
    "harden",
    "limit",
    "local_letters",
    "register_joblib",
    "status_of",
    "submit",
    "undo",
]

_MODULES = {
    "compat.executor": ("BrokenClusterError", "CeleryExecutor"),
    "compat.pool": ("Pool", "register_joblib"),
    "config.harden": ("HardenError", "harden", "undo"),
    "config.settings": ("SettingsError",),
    "tasks.base": ("ReliableTask",),
    "tasks.batch": ("Batch",),
    "tasks.durable.sources": ("JsonLines", "Pages"),
    "tasks.durable_batch": ("BatchSummary", "DurableBatch", "batch"),
    "tasks.envelope": ("Outcome",),
    "tasks.local_run": ("local_letters",),
    "tasks.policy": ("ExactWaits", "FailedRun", "RetryPolicy"),
    "tasks.results.call_status": ("status_of",),
    "tasks.results.outcomes": ("Progress",),
    "tasks.shared.circuit_breaker": ("BreakerRules",),
    "tasks.shared.limit": ("limit",),
    "tasks.shared.limit_events": ("LimitEvent",),
    "tasks.shared.primitive": ("DifferentLimitsError",),
    "tasks.submit": ("submit",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Loaded at the first use, so that `import graft.compat…` does not pay for Celery before anything is sent.
    if name not in __all__:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(import_module(f"graft.{_HOMES.get(name, 'tasks.errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
