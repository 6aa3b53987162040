"""The app with a few tasks that write down when they start and end. Not a test; the worker processes load it."""

from __future__ import annotations

import os
import time

from graft.config.celery_app import app
from graft.config.deployment import settings
from graft.config.transport import transport_url
from graft.workers.bootsteps.lease_renewal import LeaseRenewal
from graft.workers.bootsteps.preflight import RedisPreflight

app.conf.include = ()
if os.environ.get("SAMPLE_STOCK"):
    app.conf.worker_consumer = "celery.worker.consumer:Consumer"
    app.conf.broker_read_url = app.conf.broker_write_url = settings().broker_url
else:
    # Celery prefers the variable CELERY_BROKER_URL to the option broker_url, but not to these two.
    app.conf.broker_read_url = app.conf.broker_write_url = transport_url(settings().broker_url)
    app.steps["consumer"].add(LeaseRenewal)
    app.steps["worker"].add(RedisPreflight)


def _write(kind: str, label: str) -> None:
    with open(os.environ["SAMPLE_LEDGER"], "a") as ledger:
        ledger.write(f"{kind} {label}\n")


@app.task(name="sample.note", ignore_result=True)
def note(label: str, seconds: float = 0) -> None:
    """Take *seconds*, and leave a line at either end."""
    _write("start", label)
    time.sleep(seconds)
    _write("end", label)
