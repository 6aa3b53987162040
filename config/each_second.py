"""What a process has counted goes to Redis each second, on one thread for all: nobody who counts waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from celery import signals

from graft.config.deployment import existing, part

logger = logging.getLogger(__name__)

EVERY: Final = 1.0


class _Writers:
    """The functions of this process that write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: list[Callable[[], None]] = []

    def add(self, write: Callable[[], None]) -> None:
        with self._lock:
            self._writes.append(write)
            if len(self._writes) == 1:
                threading.Thread(target=self._keep_writing, name="graft-each-second", daemon=True).start()

    def write(self) -> None:
        for write in tuple(self._writes):
            try:
                write()
            except Exception:  # A fault of one must not keep the others from being written.
                logger.exception("what was counted could not be written")

    def _keep_writing(self) -> None:
        while True:
            time.sleep(EVERY)
            self.write()


def each_second(write: Callable[[], None]) -> None:
    """Call *write* each second from now on, and once more when this worker process ends; a forked child does not."""
    part(_Writers).add(write)


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def _write_what_is_left(**_: Any) -> None:
    if (writers := existing(_Writers)) is not None:
        writers.write()
