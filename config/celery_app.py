"""The one app object, for clients and workers alike."""

from __future__ import annotations

from celery import Celery

from graft.config.celeryconfig import options
from graft.config.settings import settings
from graft.config.transport import register
from graft.config.transport.amqp import Amqp

register()

app = Celery(
    "graft",
    amqp=Amqp,
    include=[
        f"graft.tasks.{name}"
        for name in (
            *("running.envelope_task", "running.call_task"),
            *("delivery.chord_recovery", "cleanup.periodic", "cleanup.redis_keys"),
            *("health.canaries", "health.periodic", "leaks.periodic", "monitoring.history"),
            *("legacy.migration_poc", "legacy.ray_hybrid_poc", "legacy.integration_framework"),
        )
    ],
)
app.config_from_object(options(settings()))
# shared_task of the user's own modules reaches this broker instead of the default one.
app.set_default()
