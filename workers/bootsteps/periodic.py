"""The base of what a worker does again and again on its own timer."""

from __future__ import annotations

import logging
import threading
from typing import Any, ClassVar

import redis
from celery import bootsteps
from celery.concurrency.prefork import TaskPool as Prefork

from graft.config.deployment import part
from graft.config.redis_client import connect

logger = logging.getLogger(__name__)


class _Clients:
    """The clients of this process's steps, one for each patience.

    With one for each step a worker had six idle connections more: seven hundred workers filled a Redis (maxclients).
    """

    def __init__(self) -> None:
        self._clients: dict[float, Any] = {}

    def of(self, patience: float) -> Any:
        return self._clients.setdefault(patience, connect(client_name="graft-worker", socket_timeout=patience))


class PeriodicStep(bootsteps.StartStopStep):
    """Calls :meth:`tick` on the worker's own timer while it is connected, with a Redis client that such steps share.

    Celery stops and starts its steps whenever the broker's connection is lost: the timer is made anew then.
    """

    requires: tuple[str, ...] = ("celery.worker.consumer.tasks:Tasks",)
    patience: ClassVar[float]
    """Seconds that a command of the client may take: a worker with an event loop does nothing else meanwhile."""
    every: float
    """Seconds between two ticks."""
    ticks_at_once: ClassVar[bool] = False
    is_beside_tasks: ClassVar[bool] = False
    """Whether it ticks on a thread where a task may hold up the worker's loop: outside prefork."""
    outage_level: ClassVar[int] = logging.DEBUG
    """The log level for the first tick that fails because Redis does not answer."""

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None
        self._client: Any = None
        self._is_stopped = threading.Event()
        self._is_failing = False

    def tick(self, consumer: Any) -> None:
        raise NotImplementedError

    def start(self, consumer: Any) -> None:
        self._client = part(_Clients).of(self.patience)
        if self.ticks_at_once:
            self._try_tick(consumer)
        if self.is_beside_tasks and not isinstance(consumer.pool, Prefork):
            self._is_stopped = threading.Event()
            arguments = (consumer, self._is_stopped)
            threading.Thread(target=self._keep_ticking, args=arguments, name=type(self).__name__, daemon=True).start()
        else:
            self._timer = consumer.timer.call_repeatedly(self.every, self._try_tick, (consumer,), priority=10)

    def stop(self, consumer: Any) -> None:
        self._end_ticks()

    shutdown = stop

    def _keep_ticking(self, consumer: Any, is_stopped: threading.Event) -> None:
        while not is_stopped.wait(self.every):
            self._try_tick(consumer)

    def _end_ticks(self) -> None:
        self._is_stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _try_tick(self, consumer: Any) -> None:
        try:
            self.tick(consumer)
            self._is_failing = False
        except (redis.RedisError, OSError) as error:
            if not self._is_failing:
                logger.log(self.outage_level, "%s of %s waits for Redis: %s", self.name, consumer.hostname, error)
            self._is_failing = True
