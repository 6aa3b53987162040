"""Has the deployment checked where Beat was and sends nothing any more: its silence is what people must hear of."""

from __future__ import annotations

from typing import Any, Final

from graft.config.deployment import settings
from graft.config.queues import table
from graft.config.redis_client import server_time
from graft.tasks.health import beat_ticks, periodic
from graft.workers.bootsteps.periodic import PeriodicStep

STAND_IN: Final = "graft:health:stand-in"


class BeatStandIn(PeriodicStep):
    """Sends Beat's health check while Beat is silent; one worker of the deployment does, the first to notice."""

    patience = 2.0

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.every = settings().leaks_every

    def tick(self, consumer: Any) -> None:
        config = settings()
        silent = beat_ticks.silence(self._client, server_time(self._client))
        if silent is None or silent <= config.health_silence:
            return
        if self._client.set(STAND_IN, consumer.hostname, nx=True, px=max(1, int(config.health_every * 1000))):
            periodic.check.apply_async(
                queue=table().maintenance, priority=0, expires=max(config.health_every, 10.0), ignore_result=True
            )
