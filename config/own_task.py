"""Our own tasks belong to the deployment's app, whichever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from celery._state import connect_on_app_finalize
from celery.local import Proxy

from graft.config.deployment import app, current, settings

MODULES: Final = (
    *("running.envelope_task", "running.call_task"),
    *("cleanup.periodic", "queues.aging", "health.canaries", "health.periodic", "leaks.periodic"),
)
LEGACY: Final = ("legacy.migration_poc", "legacy.ray_hybrid_poc", "legacy.integration_framework")


def task_modules(app: Any) -> list[str]:
    """The modules with tasks of ours that *app*'s workers import: those of old programs where it is ours, or asked."""
    legacy = LEGACY if app.main == "graft" or settings().poc_tasks else ()
    return [f"graft.tasks.{name}" for name in (*MODULES, *legacy)]


def own_task(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a function of ours as the task *name* of the deployment's app, and of no other app.

    Celery's ``shared_task`` would give the task to every app of the process. What comes back stands for the task.
    """

    def register(func: Callable[..., Any]) -> Any:
        def add(finalized: Any) -> None:
            if current.has(finalized):
                finalized.task(name=name, shared=False, lazy=False, **options)(func)

        connect_on_app_finalize(add)
        # Also to an app that was finalized before it was adopted, or before this module was imported.
        current.on_adoption(lambda adopted: add(adopted) if adopted.finalized else None)
        return Proxy(lambda: app().tasks[name])

    return register
