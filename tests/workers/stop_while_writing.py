"""Has a worker that includes this module told to stop in the turn of its loop that wrote a task to a pool process."""

from __future__ import annotations

import os
import signal
from collections import Counter

from celery.concurrency import asynpool


class Telling(Counter):
    """Celery counts what it has written. The first time, the signal is here before any answer can be read."""

    def __setitem__(self, index: int, written: int) -> None:
        super().__setitem__(index, written)
        os.kill(os.getpid(), signal.SIGTERM)


asynpool.Counter = Telling
