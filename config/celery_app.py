"""Our own app, for clients and workers alike: the app of a process that has adopted no other."""

from __future__ import annotations

from celery import Celery

from graft.config.celeryconfig import options
from graft.config.deployment import adopt, settings

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

app = Celery("graft", amqp="graft.tasks.sending.amqp:Amqp", include=TASK_MODULES)
app.config_from_object(options(settings()))
adopt(app)
