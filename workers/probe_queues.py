"""Counts what this worker takes, by queue: how fast a queue is emptied cannot be read from its length."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Final

import redis
from celery import bootsteps, signals

from graft.config.redis_client import connect
from graft.tasks import queue_control

logger = logging.getLogger(__name__)

EVERY: Final = 1.0
_taken: Counter[str] = Counter()


@signals.task_received.connect
def _note(request: Any = None, **_: Any) -> None:
    _taken[str((getattr(request, "delivery_info", None) or {}).get("routing_key"))] += 1


class Taken(bootsteps.StartStopStep):
    """Adds this worker's counts to those of all, each second in which there were any."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._client: Any = None

    def start(self, consumer: Any) -> None:
        self._client = connect(client_name="graft-taken", socket_timeout=EVERY)
        self._timer = consumer.timer.call_repeatedly(EVERY, self._tell, (consumer.hostname,), priority=10)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._client is not None:
            self._client.close()

    shutdown = stop

    def _tell(self, worker: str) -> None:
        if not _taken:
            return
        counts = dict(_taken)
        _taken.clear()
        try:
            queue_control.add_taken(worker, counts, self._client)
        except (redis.RedisError, OSError) as error:
            logger.debug("what was taken cannot be counted now: %s", error)
            _taken.update(counts)
