"""Has the pool processes of a worker that includes this module take their time to end, and notes what was left in them.

TEST_LEDGER: where a line is written for each task that was written to a process and came back unread.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery.concurrency import asynpool
from celery.signals import worker_process_shutdown

on_partial_read = asynpool.AsynPool.on_partial_read


@worker_process_shutdown.connect
def _linger(**_: Any) -> None:
    time.sleep(0.3)


def _noted(pool: Any, job: Any, process: Any) -> None:
    with open(os.environ["TEST_LEDGER"], "a") as ledger:
        ledger.write("came back\n")
    on_partial_read(pool, job, process)


asynpool.AsynPool.on_partial_read = _noted
