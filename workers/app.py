"""Root of ``celery -A graft worker``: the app with the parts that only a worker has."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import cache
from typing import Any

from celery.signals import task_prerun, worker_init, worker_process_init

from graft.config.celery_app import app
from graft.config.redis_client import be_patient
from graft.tasks import worker_runtime
from graft.tasks.delivery import chord_records, poison_isolation
from graft.tasks.monitoring import otel
from graft.workers import async_tasks, control, recycling, refused_tasks, run_counting, shutdown
from graft.workers.async_runner import runner
from graft.workers.bootsteps.beat_stand_in import BeatStandIn
from graft.workers.bootsteps.heartbeat import Heartbeat
from graft.workers.bootsteps.leak_sampler import LeakSampler
from graft.workers.bootsteps.lease_renewal import LeaseRenewal
from graft.workers.bootsteps.metrics import Metrics
from graft.workers.bootsteps.pool_upkeep import PoolUpkeep
from graft.workers.bootsteps.preflight import RedisPreflight, SigningKeyPreflight
from graft.workers.bootsteps.queue_pause import QueuePause
from graft.workers.bootsteps.queue_throughput import QueueThroughput

app.steps["worker"].update((SigningKeyPreflight, RedisPreflight))
app.steps["consumer"].update(
    (Heartbeat, PoolUpkeep, LeaseRenewal, QueuePause, LeakSampler, BeatStandIn, QueueThroughput, Metrics)
)

# tasks/ cannot import workers: it is given what runs a coroutine.
worker_runtime.use_runner(runner)


# A part of a chord may come from a caller that does not record its chords.
task_prerun.connect(chord_records.note_run, weak=False)

OUTAGE_PATIENCE = 120.0


@worker_init.connect
def _prepare_to_fork(**_: Any) -> None:
    async_tasks.prepare(app)  # Before tracers are built, too.
    poison_isolation.prepare()


@worker_init.connect
@worker_process_init.connect
def _become_a_worker(**_: Any) -> None:
    be_patient(OUTAGE_PATIENCE)
    worker_runtime.enter_worker()
    otel.is_on()  # Before the first task, so that it is traced.


@worker_init.connect
def _share_memory(**_: Any) -> None:
    """Keep memory shared after the first fork: the garbage collector writes to every object that it visits, here too.

    A worker of two processes took 136 MiB (PSS) instead of 97, once its main process had collected.
    """
    os.register_at_fork(before=_freeze_once)


@cache
def _freeze_once() -> None:
    gc.collect()
    gc.freeze()


@worker_process_init.connect
def _leave_the_parent_behind(**_: Any) -> None:
    """A pool process has no event loop of its parent's, and does not collect its parent's garbage again and again.

    Without the latter ``ast.parse`` of the standard library took 4.3 s in a pool process instead of 2.6 s: every
    collection walked all that Celery had made before the fork.
    """
    asyncio.set_event_loop(None)
    gc.freeze()


__all__ = ["app", "control", "recycling", "refused_tasks", "run_counting", "shutdown"]
