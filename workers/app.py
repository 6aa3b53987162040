"""What a worker of a hardened app has beside Celery's own. Imported when a worker starts (config/harden.py)."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import cache, partial
from typing import Any

from celery.signals import task_prerun, worker_process_init

from graft.config.deployment import settings
from graft.config.private_names import of_billiard, of_celery, of_kombu, require
from graft.config.queues import GUEST, table
from graft.config.redis_client import be_patient
from graft.tasks import worker_runtime
from graft.tasks.delivery import cancellation, chord_records, lease, poison_isolation
from graft.tasks.monitoring import otel
from graft.workers import (
    async_tasks,
    control,
    due_times,
    late_failures,
    outbox_patch,
    pool_choice,
    prefork_patch,
    recycling,
    refused_tasks,
    result_patch,
    run_counting,
    shutdown,
)
from graft.workers.async_runner import runner
from graft.workers.bootsteps import leak_sampler, metrics

# tasks/ cannot import workers: it is given what runs a coroutine.
worker_runtime.use_runner(runner)


# A part of a chord may come from a caller that does not record its chords.
task_prerun.connect(chord_records.note_run, weak=False)

OUTAGE_PATIENCE = 120.0

require(of_celery.WORKER, of_kombu.WORKER, of_billiard.WORKER)


def prepare(worker: Any) -> None:
    """Make *worker*, which is about to start, a hardened one. Before its pool processes are forked."""
    app = worker.app
    async_tasks.prepare(app)  # Before tracers are built, too.
    poison_isolation.prepare()
    cancellation.keep_filter()
    lease.keep_clock()
    result_patch.install()
    outbox_patch.install()
    recycling.prepare(worker)
    metrics.prepare()
    pool_choice.prepare(worker)
    prefork_patch.replace_at_once()
    due_times.install()
    worker.wait_for_soft_shutdown = partial(shutdown.wait_softly, worker)
    if table().default in app.amqp.queues.consume_from:
        # Our own messages, and what the deployment adds, beside the queues of the project.
        ours = [GUEST] if table().batch == GUEST else []
        for queue in [*ours, *filter(None, map(str.strip, settings().queues.split(",")))]:
            app.amqp.queues.select_add(queue)
    _become_a_worker()
    # Keep memory shared after the first fork: the garbage collector writes to every object that it visits, here too.
    # A worker of two processes took 136 MiB (PSS) instead of 97, once its main process had collected. What is imported
    # by now is frozen at once: Celery collects before it makes each pool process, and would walk all of that.
    gc.freeze()
    os.register_at_fork(before=_freeze_once)


@worker_process_init.connect
def _become_a_worker(**_: Any) -> None:
    be_patient(OUTAGE_PATIENCE)
    worker_runtime.enter_worker()
    otel.is_on()  # Before the first task, so that it is traced.


@cache
def _freeze_once() -> None:
    gc.freeze()


@worker_process_init.connect
def _leave_the_parent_behind(**_: Any) -> None:
    """A pool process has no event loop of its parent's, and does not collect its parent's garbage again and again.

    Without the latter ``ast.parse`` of the standard library took 4.3 s in a pool process instead of 2.6 s: every
    collection walked all that Celery had made before the fork.
    """
    asyncio.set_event_loop(None)
    gc.freeze()


__all__ = ["control", "late_failures", "leak_sampler", "prepare", "refused_tasks", "run_counting", "shutdown"]
