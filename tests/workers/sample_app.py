"""The app with a few tasks that write down when they start and end. Not a test; the worker processes load it."""

from __future__ import annotations

import os
import time

import graft
from graft.config.celery_app import app

if os.environ.get("SAMPLE_STOCK"):
    graft.undo(app)
    # Celery as it comes, with late acknowledgement, and the lease that the test asks for.
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
    seconds = float(os.environ["GRAFT_VISIBILITY_TIMEOUT"])
    sweeps = {"unacked_restore_interval": 0.5, "unacked_restore_throttle": 1, "unacked_mutex_expire": 15}
    app.conf.broker_transport_options |= {"visibility_timeout": seconds, "socket_timeout": 10, **sweeps}


def _write(kind: str, label: str) -> None:
    with open(os.environ["SAMPLE_LEDGER"], "a") as ledger:
        ledger.write(f"{kind} {label}\n")


@app.task(name="sample.note", ignore_result=True)
def note(label: str, seconds: float = 0) -> None:
    """Take *seconds*, and leave a line at either end."""
    _write("start", label)
    time.sleep(seconds)
    _write("end", label)
