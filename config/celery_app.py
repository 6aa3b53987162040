"""Our own app, for clients and workers alike: the app of a process that has adopted no other."""

from __future__ import annotations

from celery import Celery
from celery._state import _get_active_apps

from graft.config.celeryconfig import options
from graft.config.deployment import current, settings

# Imported by workers, Beat and Flower. What they define is registered with the deployment's app (own_task.py).
TASK_MODULES = [
    f"graft.tasks.{name}"
    for name in (
        *("running.envelope_task", "running.call_task"),
        *("cleanup.chord_recovery", "queues.aging", "cleanup.redis_keys"),
        *("health.canaries", "health.periodic", "leaks.periodic", "health.history"),
        *("legacy.migration_poc", "legacy.ray_hybrid_poc", "legacy.integration_framework"),
    )
]

# Made at the first call, perhaps in the middle of somebody's program: an app of theirs stays the current one.
_is_alone = all(other.main == "default" for other in _get_active_apps())
app = Celery("graft", amqp="graft.tasks.sending.amqp:Amqp", include=TASK_MODULES, set_as_current=_is_alone)
app.config_from_object(options(settings()))
if not current.is_adopted:
    current.adopt(app)
