"""Root of ``celery -A graft worker``: the app with the parts that only a worker has."""

from __future__ import annotations

from typing import Any

from celery.signals import celeryd_init, worker_process_init

from graft.config.celery_app import app
from graft.config.settings import settings
from graft.tasks import invoke
from graft.tasks.errors import SignatureError
from graft.workers import control
from graft.workers.async_runner import runner
from graft.workers.bootsteps import PoolUpkeep
from graft.workers.heartbeat import Heartbeat

from graft.workers.lease import LeaseRenewal

app.steps["consumer"].add(Heartbeat)
app.steps["consumer"].add(PoolUpkeep)
app.steps["consumer"].add(LeaseRenewal)

# tasks.invoke asks for something that runs a coroutine; this is it.
invoke.use_runner(runner)


@celeryd_init.connect
def _refuse_without_a_key(**_: Any) -> None:
    if not settings().signing_keys:
        raise SignatureError(
            "a worker needs the deployment's signing key: set GRAFT_SIGNING_KEY, the same for workers and callers"
        )


@worker_process_init.connect
def _let_go_of_the_parent(**_: Any) -> None:
    """A pool process starts with no event loop of its parent set as its own."""
    import asyncio

    asyncio.set_event_loop(None)


__all__ = ["app", "control"]
