"""Thin start/stop steps for the parts of a worker."""

from __future__ import annotations

from typing import Any, ClassVar

from celery import bootsteps

from graft.config.deployment import settings
from graft.config.redis_client import connect

LOOK_EVERY = 0.5


class PeriodicStep(bootsteps.StartStopStep):
    """Calls :meth:`tick` on the worker's own timer while it is connected, with a Redis client of its own.

    Celery stops and starts its steps whenever the broker's connection is lost: timer and client are made anew then.
    """

    requires: tuple[str, ...] = ("celery.worker.consumer.tasks:Tasks",)
    client_name: ClassVar[str]
    patience: ClassVar[float]
    """Seconds that a command of the client may take: a worker with an event loop does nothing else meanwhile."""
    every: float
    """Seconds between two ticks."""
    ticks_at_once: ClassVar[bool] = False

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._client: Any = None

    def tick(self, consumer: Any) -> None:
        raise NotImplementedError

    def start(self, consumer: Any) -> None:
        self._client = connect(client_name=self.client_name, socket_timeout=self.patience)
        if self.ticks_at_once:
            self.tick(consumer)
        self._timer = consumer.timer.call_repeatedly(self.every, self.tick, (consumer,), priority=10)

    def stop(self, consumer: Any) -> None:
        self._end_ticks()
        if self._client is not None:
            self._client.close()

    shutdown = stop

    def _end_ticks(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class SigningKey(bootsteps.StartStopStep):
    """A worker without the deployment's key could open nothing: it does not start."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        if not settings().signing_keys:
            raise SystemExit("a worker needs the deployment's key: set GRAFT_SIGNING_KEY, the same as for its callers")


class PoolUpkeep(bootsteps.StartStopStep):
    """Replaces dead pool processes, and gives back what they ran, within half a second.

    Celery looks every 5 s (5.7, asynpool): a message that kills its process would take as long for each of its runs.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        if consumer.hub is not None:  # Threads do not die, and solo is the worker itself.
            self._timer = consumer.timer.call_repeatedly(LOOK_EVERY, consumer.pool.maintain_pool)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    shutdown = stop
