"""Looks at this worker's processes now and then; those that leak are replaced where the deployment wants it.

The main process looks at itself on the worker's own timer; each pool process on a thread, which also sees a task that
never ends. A prefork worker's main process has no thread of ours: it forks all its life long.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import psutil
import redis
from celery import signals

from graft.config.deployment import part, settings
from graft.config.redis_client import shared
from graft.tasks.health import beat_ticks, periodic, task_counts
from graft.tasks.health.measure import clock
from graft.tasks.leaks import borrowed_connections, samples
from graft.tasks.leaks.findings import RECYCLE
from graft.tasks.leaks.samples import Sample
from graft.tasks.leaks.tracemalloc_session import Tracer
from graft.tasks.monitoring.run_counts import run_counts
from graft.workers import async_runner, process_stats, recycling
from graft.workers.bootsteps.pool_upkeep import PeriodicStep

logger = logging.getLogger(__name__)

# Their items are counted by callable, or they are ours.
ENVELOPES: Final = ("graft.batch", "graft.reduce")
STAND_IN: Final = "graft:health:stand-in"
DETAILS_EVERY: Final = 4  # Looks at types of objects and addresses of sockets, which cost more.


class Observer:
    """Takes the samples of one process."""

    def __init__(self, worker: str, role: str, loop: Callable[[], asyncio.AbstractEventLoop | None]) -> None:
        self.worker, self.role, self._loop = worker, role, loop
        self.pid = os.getpid()
        self.born = psutil.Process().create_time()
        self._looks = 0
        self._collect_after = 0.0
        self._tracer = Tracer()
        self._last: Sample | None = None

    def look(self, client: Any) -> None:
        """Measure this process and keep the sample."""
        sample = self.measure(clock(client))
        samples.keep(sample, client)
        self._tracer.step(sample.key, sample.at, client)
        task_counts.add(part(_TaskCounts).take(), client)
        self._last = sample
        if self.role == "pool" and client.getdel(f"{RECYCLE}:{sample.key}"):
            logger.warning("this process leaks: it is replaced when its task has ended")
            recycling.end_after_this_task("a leaking process has ended its task and is replaced")

    def measure(self, at: float) -> Sample:
        self._collect()
        anonymous, proportional = process_stats.memory()
        kinds, files = process_stats.descriptors()
        count, running, lag = process_stats.coroutines(self._loop())
        evidence = {"files": files, "threads": process_stats.threads(), "coroutines": running}
        objects = self._last.objects if self._last else 0
        if self._looks % DETAILS_EVERY == 0:
            objects, evidence["objects"] = process_stats.objects()
            evidence["sockets"] = process_stats.sockets()
        self._looks += 1
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
            objects=objects,
            lag=lag,
            ran=run_counts().take(),
            evidence=evidence,
            held=[[who, round(seconds, 1)] for who, seconds in borrowed_connections.held(settings().leaks_hold)[:5]],
        )

    def _collect(self) -> None:
        """What only waits for the garbage collector is no leak. Takes a thousandth of the process's time at most."""
        began = time.monotonic()
        if began >= self._collect_after:
            gc.collect()
            self._collect_after = began + 1000 * (time.monotonic() - began)


class Probe(PeriodicStep):
    """Looks at the worker's main process."""

    client_name = "graft-probe"
    patience = 2.0

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.every = settings().leaks_every
        self._observer: Observer | None = None

    def start(self, consumer: Any) -> None:
        self._observer = self._observer or Observer(consumer.hostname, "main", partial(_loop_of, consumer.pool))
        super().start(consumer)

    def tick(self, consumer: Any) -> None:
        assert self._observer is not None
        try:
            self._observer.look(self._client)
            _stand_in_for_beat(consumer.hostname, self._client)
        except (redis.RedisError, OSError) as error:
            logger.debug("this worker's processes cannot be looked at now: %s", error)


def _loop_of(pool: Any) -> asyncio.AbstractEventLoop | None:
    """The loop that is the pool (workers/aio_pool.py), or that of the coroutines in this process."""
    return getattr(getattr(pool, "floor", None), "loop", None) or async_runner.current()


def _stand_in_for_beat(worker: str, client: Any) -> None:
    """Where Beat was and is silent now, have the deployment checked all the same: somebody must be told."""
    config = settings()
    silent = beat_ticks.silence(client, clock(client))
    if silent is None or silent <= config.health_silence:
        return
    if client.set(STAND_IN, worker, nx=True, px=max(1, int(config.health_every * 1000))):
        periodic.check.apply_async(
            queue="maintenance", priority=0, expires=max(config.health_every, 10.0), ignore_result=True
        )


class _TaskCounts:
    """What became of tasks that are not ours, in this process, since it was last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, *names: str) -> None:
        with self._lock:
            self._counts.update(names)

    def take(self) -> Counter[str]:
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken


def _count_plain(sender: Any, *names: str) -> None:
    if not str(getattr(sender, "name", "")).startswith("graft."):
        part(_TaskCounts).add(*names)


@signals.task_prerun.connect
def _note_run(sender: Any = None, **_: Any) -> None:
    name = str(getattr(sender, "name", ""))
    if name not in ENVELOPES:
        run_counts().note(name)


@signals.task_success.connect
def _note_success(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items")


@signals.task_failure.connect
def _note_failure(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items", "errors")


@signals.task_retry.connect
def _note_retry(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items", "errors", "retries")


@signals.worker_process_init.connect
def _observe_pool_process(sender: Any = None, **_: Any) -> None:
    if sender is not None:  # Prefork's; other pools are the main process.
        threading.Thread(target=_keep_looking, args=(str(sender),), name="graft-probe", daemon=True).start()


def _keep_looking(worker: str) -> None:
    observer = Observer(worker, "pool", async_runner.current)
    pause = threading.Event()
    while not pause.wait(settings().leaks_every):
        try:
            observer.look(shared())
        except (redis.RedisError, OSError) as error:
            logger.debug("this process cannot be looked at now: %s", error)
        except Exception:  # A fault of ours must not be one of the worker's.
            logger.exception("the look at this process failed")
