"""Old worker-pool calls on real Celery workers: the public names of celery-graft.

``graft.submit(func, items)`` is the way in for new code; old code imports the facades under ``graft.compat``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.tasks.batch import Batch
    from graft.tasks.submit import submit

__version__ = "0.1.0"
__all__ = ["Batch", "__version__", "submit"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `import graft.compat…` does not pay for Celery before anything is sent.
    if name == "submit":
        from graft.tasks.submit import submit

        return submit
    if name == "Batch":
        from graft.tasks.batch import Batch

        return Batch
    raise AttributeError(f"module 'graft' has no attribute {name!r}")
