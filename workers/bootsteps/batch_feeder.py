"""Feeds the deployment's durable batches in one of its workers: whichever finds first that nobody does.

prefork        a process of its own, which dies with the worker: the main process has no threads (it forks)
other pools    a thread
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any, Final

from billiard.context import ForkContext
from celery import bootsteps, platforms
from celery.concurrency.prefork import TaskPool as Prefork

from graft.tasks.durable import feeder_lease
from graft.workers.bootsteps.periodic import PeriodicStep

logger = logging.getLogger(__name__)

ENDS: Final = 2.0  # Seconds that the end of a feeder may take; its lease is over soon after.


class BatchFeeder(PeriodicStep):
    """Looks each second whether there are batches that nobody feeds."""

    every = patience = 1.0
    is_beside_tasks = True

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._feeding: Any = None  # A thread or a process.
        self._is_ending = threading.Event()

    def tick(self, consumer: Any) -> None:
        if self._feeding is not None and self._feeding.is_alive():
            return
        if not feeder_lease.is_wanted(self._client):
            return
        self._is_ending = threading.Event()
        if isinstance(consumer.pool, Prefork):
            self._feeding = ForkContext().Process(target=feed_in_process, name="graft-feeder", daemon=True)
        else:
            self._feeding = threading.Thread(target=self._feed, name="graft-feeder", daemon=True)
        self._feeding.start()

    def stop(self, consumer: Any) -> None:
        super().stop(consumer)
        if consumer.blueprint.state != bootsteps.RUN:  # Else the connection was lost, and start() follows.
            self._end()

    def shutdown(self, consumer: Any) -> None:
        super().stop(consumer)
        self._end()

    def _end(self) -> None:
        feeding, self._feeding = self._feeding, None
        if feeding is None:
            return
        self._is_ending.set()
        if not isinstance(feeding, threading.Thread):
            feeding.terminate()
        feeding.join(ENDS)

    def _feed(self) -> None:
        run(self._is_ending)


def feed_in_process() -> None:
    """Feed in a process that the worker's main process has forked for it."""
    platforms.set_pdeathsig("SIGKILL")
    is_ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda *_: is_ending.set())
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
    run(is_ending)


def run(is_ending: threading.Event) -> None:
    from graft.tasks.feeding.feeder import Feeder  # Few workers ever feed a batch.

    try:
        Feeder(is_ending).run()
    except Exception:  # A fault of ours; somebody else tries, or this worker does again in a second.
        logger.exception("the feeder of durable batches failed")
