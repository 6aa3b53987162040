"""Writes this worker's heartbeat to Redis: who it is, what it reads, how busy it is.

A key with an expiry is read without a broadcast, and vanishes when its worker does.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import psutil
import redis
from celery.worker import state

from graft.tasks.monitoring.worker_registry import BEAT_EVERY, WorkerBeat, beat, remove
from graft.workers.bootsteps.periodic import PeriodicStep

logger = logging.getLogger(__name__)

STARTED: Final = time.time()


def memory_and_stopped(pool: Any) -> tuple[int, int]:
    """Resident bytes of this process and of *pool*'s; and how many of these a signal has stopped."""
    listed = (pool.info or {}).get("processes") or []
    total = stopped = 0
    for pid in {os.getpid(), *(pid for pid in listed if isinstance(pid, int))}:
        try:
            process = psutil.Process(pid)
            total += process.memory_info().rss
            stopped += process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        except psutil.Error:  # It has ended meanwhile.
            continue
    return total, stopped


def processes(pool: Any) -> int:
    """Processes (or threads) that *pool* really has. Its ``max-concurrency`` stays at the starting value."""
    info = pool.info or {}
    listed = info.get("processes")
    return len(listed) if listed else int(pool.num_processes)


def unseen_runs(pool: Any) -> int:
    """Runs of *pool* for which Celery has no request."""
    return int(getattr(pool, "unseen_runs", 0))


class Heartbeat(PeriodicStep):
    """Beats while the consumer is connected; the first beat says that it also hears control commands."""

    requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.control:Control")
    every = patience = BEAT_EVERY
    ticks_at_once = True
    outage_level = logging.WARNING  # Health and top miss the worker meanwhile.

    def stop(self, consumer: Any) -> None:
        self._end_ticks()  # The client is still needed to remove the heartbeat.

    def shutdown(self, consumer: Any) -> None:
        self.stop(consumer)
        if self._client is not None:
            try:
                remove(consumer.hostname, self._client)
            except (redis.RedisError, OSError) as error:
                logger.debug("the heartbeat stays until it expires: %s", error)
            self._client = None

    def tick(self, consumer: Any) -> None:
        if self._client is not None:
            beat(self._report(consumer), self._client)

    def _report(self, consumer: Any) -> WorkerBeat:
        active = len(state.active_requests) + unseen_runs(consumer.pool)
        info = consumer.pool.info or {}
        memory, stopped = memory_and_stopped(consumer.pool)
        return WorkerBeat(
            name=consumer.hostname,
            pid=os.getpid(),
            pool=type(consumer.pool).__module__.rpartition(".")[2],
            queues=sorted(consumer.app.amqp.queues.consume_from),
            processes=processes(consumer.pool),
            busy=active,
            waiting=max(0, len(state.reserved_requests) - len(state.active_requests)),
            memory=memory,
            at=time.time(),
            lag=float(info.get("lag", 0.0)),
            blocked_by=str(info.get("blocked-by", "")),
            since=STARTED,
            stopped=stopped,
            host=os.uname().nodename,
        )
