"""Gives a worker the size that the load asks for: ``celery -A graft worker --autoscale=8,2``.

Celery's own autoscaler counts what this one worker has fetched, which with a prefetch of one is never more than it
runs. Here the messages that wait in Redis count, by the rules of ``monitoring/worker_load.py``; each change is logged
with its numbers.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import redis
from celery.worker import autoscale

from graft.config.deployment import settings
from graft.tasks.monitoring import worker_load
from graft.tasks.monitoring.worker_load import Scaler, ScalingRules
from graft.workers.control import resize

logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 1.0


class Autoscaler(autoscale.Autoscaler):
    """Obeys :class:`graft.tasks.monitoring.worker_load.Scaler`."""

    def __init__(self, pool: Any, max_concurrency: int, min_concurrency: int = 0, **kwargs: Any) -> None:
        super().__init__(pool, max_concurrency, max(1, min_concurrency), **kwargs)
        # With an event loop, the worker calls maybe_scale this often, and for each message.
        self.keepalive = CHECK_EVERY
        self.scaler = self._scaler()
        self._checked_at = float("-inf")
        self._is_new = True

    def _scaler(self) -> Scaler:
        return Scaler(ScalingRules(self.min_concurrency, self.max_concurrency, idle=settings().scale_idle))

    def _maybe_scale(self, req: Any = None) -> bool:
        now = time.monotonic()
        if now - self._checked_at < CHECK_EVERY / 2:
            return False
        self._checked_at = now
        try:
            found = {load.lane: load for load in worker_load.measure()}
        except (redis.RedisError, OSError) as error:
            logger.debug("Redis does not give the load, so the size stays: %s", error)
            return False
        queues = self.worker.app.amqp.queues.consume_from
        if (self.scaler.rules.low, self.scaler.rules.high) != (self.min_concurrency, self.max_concurrency):
            self.scaler = self._scaler()  # Changed by remote control.
        size = self.processes
        if self._is_new:  # Celery fetches for the largest size from the start, which keeps messages from idle workers.
            self._is_new = False
            resize(self.worker.consumer, size)
        self.scaler, decision = self.scaler.decide(size, worker_load.load_of(queues, found).per_slot, now)
        if decision.change == "stay":
            return False
        logger.info("autoscale %s: %s", self.worker.hostname, decision.reason)
        try:
            resize(self.worker.consumer, decision.size)
        except ValueError:
            logger.info(
                "autoscale %s: %d processes remain, because they are busy", self.worker.hostname, self.processes
            )
        return True
