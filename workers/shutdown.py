"""How a worker stops, so that no run is lost, and none is counted as a death of its process.

    SIGTERM (warm)   begins nothing more, gives back what has not begun, and finishes what runs; after
                     ``drain_timeout`` seconds it becomes a cold one
    SIGQUIT (cold)   the same for ``worker_soft_shutdown_timeout`` seconds (default 0), then ends what runs; its
                     messages return at once

A run that the worker ends itself is pardoned: without that, three restarts while an item runs would look like an item
that killed three processes.

Celery's warm shutdown waits for ever: whoever stops the process kills it in the middle, and what it ran is delivered
again only when its lease has run out. A cold shutdown cancels what runs and returns its messages. Threads cannot be
cancelled: a worker that still runs some ends with them, and their messages return when their leases run out.

Celery's own soft shutdown is one ``sleep`` on the worker's loop: no lease is renewed and no result read meanwhile, so a
wait longer than the lease gives what runs to a second worker (3 of 3), and what ends during it is ended once more.
:func:`wait_softly` waits in short turns, until nothing runs.

Celery 5.7 calls the handler of a signal that ends a worker at once ``worker_Cold`` (apps/worker.py,
``_shutdown_handler``). It takes the pool down inside that handler, wherever the event loop happens to be. The loop may
have written half a task to a pool process, which waits for the other half, as the shutdown waits for the process, both
for ever. :func:`between_turns` lets the loop finish its turn first.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
from celery import signals
from celery.bootsteps import RUN
from celery.worker import state

from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.tasks.delivery import run_counter
from graft.workers import active_runs
from graft.workers.active_runs import ActiveRun

logger = logging.getLogger(__name__)

COLD: Final = "worker_Cold"
COLD_SECONDS: Final = 8.0  # That a cold shutdown may take; killing pool processes takes two.
TURN: Final = 0.1  # Seconds between two checks during a soft shutdown.

_pardoned: set[ActiveRun] = set()


def has_begun() -> bool:
    """Whether this worker was told to stop: nothing may begin any more."""
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))


# The handler of a signal sends this one, before anything is ended. What it calls is called in order.
@signals.worker_shutting_down.connect
def _set_deadline(how: str = "", **_: Any) -> None:
    seconds = settings().drain_timeout
    if how != "Warm" or not seconds:
        return
    deadline = threading.Timer(seconds, _become_cold, (seconds,))
    deadline.name = "drain"
    deadline.daemon = True  # The usual case: everything is finished long before.
    deadline.start()


@signals.worker_shutting_down.connect
def pardon_active(**_: Any) -> None:
    """Note in Redis that this worker ends what runs here. Called two or three times on the way out.

    The handler may have come at any moment. A request for what runs unseen would send an event, perhaps in the middle
    of sending one, and wait for ever for the lock that is held for that.
    """
    runs = active_runs.unseen() | {
        ActiveRun(
            request.id, int(request.request_dict.get("retries") or 0), str(request.message.delivery_tag)
        ) for request in tuple(state.active_requests)
    }  # fmt: skip
    runs -= _pardoned
    if not runs:
        return
    _pardoned.update(runs)
    try:
        with connect(socket_timeout=2.0, client_name="graft-shutdown") as client:
            run_counter.pardon(runs, client)
    except (redis.RedisError, OSError) as error:
        logger.warning(
            "Redis did not take the note that this worker stops: its %d runs count as deaths of their process: %r",
            len(runs), error,
        )  # fmt: skip


def _become_cold(seconds: float) -> None:
    logger.warning("tasks still run %g s after SIGTERM (GRAFT_DRAIN_TIMEOUT): their messages are given back", seconds)
    os.kill(os.getpid(), signal.SIGQUIT)
    time.sleep(COLD_SECONDS)
    logger.error(
        "tasks still run %g s after they were cancelled: this process ends now, and their messages return when their "
        "leases run out", COLD_SECONDS,
    )  # fmt: skip
    os._exit(1)


def wait_softly(worker: Any) -> None:
    """Celery's ``wait_for_soft_shutdown`` for *worker*, a cold one's first step: until nothing runs, or time is up."""
    consumer = getattr(worker, "consumer", None)
    if worker.blueprint.state != RUN or consumer is None:
        return  # A worker that drains has done so already.
    consumer.give_back_waiting()
    seconds = worker.app.conf.worker_soft_shutdown_timeout
    waits_idle = worker.app.conf.worker_enable_soft_shutdown_on_idle
    if seconds <= 0 or not (state.active_requests or waits_idle):
        return
    logger.warning("soft shutdown: what runs has %g s to end (worker_soft_shutdown_timeout)", seconds)
    deadline = time.monotonic() + seconds
    while (state.active_requests or waits_idle) and not has_begun() and time.monotonic() < deadline:
        consumer.take_turn(TURN)


def between_turns(loop: Callable[..., None], hub: Any, prepare: Callable[[], None]) -> Callable[..., None]:
    """*loop*, the consumer's, in which a cold shutdown begins between two turns, and after *prepare*."""
    requested: list[Callable[[], object]] = []

    def begin() -> None:
        while requested:
            prepare()
            requested.pop()()

    def request(handler: Callable[..., object], number: int, frame: object) -> None:
        if not requested:
            requested.append(partial(handler, number, frame))

    def run(*args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return loop(*args)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)}
        replaced = {
            number: (handler, partial(request, handler))
            for number, handler in handlers.items()
            if callable(handler) and getattr(handler, "__name__", "") == COLD
        }
        for number, (_, ours) in replaced.items():
            signal.signal(number, ours)
        hub.on_tick.add(begin)
        try:
            return loop(*args)
        finally:
            hub.on_tick.discard(begin)
            for number, (handler, ours) in replaced.items():
                if signal.getsignal(number) is ours:  # A shutdown that has begun replaces handlers itself.
                    signal.signal(number, handler)
            begin()

    return run
