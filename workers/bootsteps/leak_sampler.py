"""Samples this worker's processes for the leak checks (tasks/leaks); a pool process that leaks is replaced if wanted.

The main process is sampled on the worker's own timer, each pool process on a thread, which also sees a task that never
ends. A prefork worker's main process has no thread of ours: it forks all its life long.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import psutil
import redis
from celery import signals

from graft.config.deployment import settings
from graft.config.redis_client import server_time, shared
from graft.tasks.leaks import borrowed_connections, samples, thread_stacks
from graft.tasks.leaks.samples import RECYCLE, Sample
from graft.tasks.leaks.tracemalloc_session import Tracer
from graft.tasks.monitoring.run_counts import run_counts
from graft.workers import async_runner, process_stats, recycling
from graft.workers.bootsteps.periodic import PeriodicStep

logger = logging.getLogger(__name__)

DETAILS_EVERY: Final = 4  # Samples between two that count types of objects and addresses of sockets, which cost more.


class ProcessSampler:
    """Takes the samples of one process."""

    def __init__(self, worker: str, role: str, loop: Callable[[], asyncio.AbstractEventLoop | None]) -> None:
        self.worker, self.role, self._loop = worker, role, loop
        self.pid = os.getpid()
        self.born = psutil.Process().create_time()
        self._taken = 0
        self._objects = 0
        self._collect_after = 0.0
        self._tracer = Tracer()

    def sample(self, client: Any) -> None:
        """Measure this process and keep the sample; trace, show or replace the process where that is requested."""
        sample = self.measure(server_time(client))
        samples.keep(sample, client)
        self._tracer.step(sample.key, sample.at, client)
        thread_stacks.answer(sample.key, sample.at, client)
        run_counts().add_plain_to(client)
        if self.role == "pool" and client.getdel(f"{RECYCLE}:{sample.key}"):
            logger.warning("this process leaks: it is replaced when its task has ended")
            recycling.end_after_this_task("a leaking process has ended its task and is replaced")

    def measure(self, at: float) -> Sample:
        self._collect()
        anonymous, proportional = process_stats.memory()
        kinds, files = process_stats.descriptors()
        count, running, lag = process_stats.coroutines(self._loop())
        evidence = {"files": files, "threads": process_stats.threads(), "coroutines": running}
        if self._taken % DETAILS_EVERY == 0:
            self._objects, evidence["objects"] = process_stats.objects()
            evidence["sockets"] = process_stats.sockets()
        self._taken += 1
        return Sample(
            at=at,
            worker=self.worker,
            pid=self.pid,
            born=self.born,
            role=self.role,
            memory=round(anonymous, 2),
            proportional=round(proportional, 2),
            files=kinds.get("files", 0),
            sockets=kinds.get("sockets", 0),
            pipes=kinds.get("pipes", 0),
            threads=threading.active_count(),
            coroutines=count,
            objects=self._objects,
            lag=lag,
            ran=run_counts().take(),
            evidence=evidence,
            held=[[who, round(seconds, 1)] for who, seconds in borrowed_connections.held(settings().leaks_hold)[:5]],
        )

    def _collect(self) -> None:
        """Collect garbage first, which is no leak. Takes a thousandth of the process's time at most."""
        began = time.monotonic()
        if began >= self._collect_after:
            gc.collect()
            self._collect_after = began + 1000 * (time.monotonic() - began)


class LeakSampler(PeriodicStep):
    """Samples the worker's main process."""

    patience = 2.0

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.every = settings().leaks_every
        self._sampler: ProcessSampler | None = None

    def start(self, consumer: Any) -> None:
        self._sampler = self._sampler or ProcessSampler(consumer.hostname, "main", partial(_loop_of, consumer.pool))
        super().start(consumer)

    def tick(self, consumer: Any) -> None:
        assert self._sampler is not None
        self._sampler.sample(self._client)


def _loop_of(pool: Any) -> asyncio.AbstractEventLoop | None:
    """The loop that is the pool (workers/aio_pool.py), or that of the coroutines in this process."""
    return getattr(getattr(pool, "loop_thread", None), "loop", None) or async_runner.current()


@signals.worker_process_init.connect
def _sample_pool_process(sender: Any = None, **_: Any) -> None:
    if sender is not None:  # Prefork's; other pools are the main process.
        threading.Thread(target=_keep_sampling, args=(str(sender),), name="graft-leaks", daemon=True).start()


def _keep_sampling(worker: str) -> None:
    sampler = ProcessSampler(worker, "pool", async_runner.current)
    pause = threading.Event()
    while not pause.wait(settings().leaks_every):
        try:
            sampler.sample(shared())
        except (redis.RedisError, OSError) as error:
            logger.debug("no sample of this process could be kept: %s", error)
        except Exception:  # A fault of ours must not be one of the worker's.
            logger.exception("the sample of this process failed; the next one follows in GRAFT_LEAKS_EVERY seconds")
