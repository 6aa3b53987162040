"""Root of ``celery -A graft worker``: the app with the parts that only a worker has."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_init, worker_process_init

from graft.config.celery_app import app
from graft.config.redis_client import be_patient
from graft.tasks import invoke
from graft.workers import control
from graft.workers.async_runner import runner
from graft.workers.bootsteps import PoolUpkeep, SigningKey
from graft.workers.heartbeat import Heartbeat
from graft.workers.lease import LeaseRenewal

app.steps["worker"].add(SigningKey)
app.steps["consumer"].add(Heartbeat)
app.steps["consumer"].add(PoolUpkeep)
app.steps["consumer"].add(LeaseRenewal)

# tasks.invoke asks for something that runs a coroutine; this is it.
invoke.use_runner(runner)


OUTAGE_PATIENCE = 120.0


@worker_init.connect
@worker_process_init.connect
def _become_a_worker(**_: Any) -> None:
    be_patient(OUTAGE_PATIENCE)
    invoke.enter_worker()


@worker_process_init.connect
def _let_go_of_the_parent(**_: Any) -> None:
    """A pool process starts with no event loop of its parent set as its own."""
    import asyncio

    asyncio.set_event_loop(None)


__all__ = ["app", "control"]
