"""A worker that is told to stop blames nobody for the processes that it takes down.

    SIGTERM (warm)   fetches nothing more, finishes what runs; what the supervisor kills after its patience returns
    SIGQUIT (cold)   waits ``worker_soft_shutdown_timeout``, then ends what runs; its messages return at once

Without a word from here, three restarts while an item runs would look like an item that killed three processes.

Celery takes the pool down from within the signal's handler, wherever its event loop happens to be. It may have written
half a task to a pool process: that waits for the other half, the shutdown for the process, and both for ever (5.7).
Here the loop finishes its turn first (:func:`between_turns`).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
from celery import signals
from celery.worker import state

from graft.config.redis_client import connect
from graft.tasks.delivery import run_counter

logger = logging.getLogger(__name__)

COLD: Final = "worker_Cold"  # What Celery calls the handler of a signal that ends the worker at once.

_pardoned: set[tuple[str, int]] = set()


def pardon_active(**_: Any) -> None:
    """Tell Redis that what runs here is ended by us, if it is ended. Called once or twice on the way out."""
    runs = {(request.id, int(request.request_dict.get("retries") or 0)) for request in tuple(state.active_requests)}
    runs -= _pardoned
    if not runs:
        return
    _pardoned.update(runs)
    try:
        with connect(socket_timeout=2.0, client_name="graft-shutdown") as client:
            run_counter.pardon(runs, client)
    except (redis.RedisError, OSError) as error:
        logger.warning(
            "%d runs will count against their items, Redis could not be told otherwise: %r", len(runs), error
        )


def between_turns(loop: Callable[..., None], hub: Any, prepare: Callable[[], None]) -> Callable[..., None]:
    """*loop*, the consumer's, in which a cold shutdown begins between two turns, and after *prepare*."""
    asked: list[Callable[[], object]] = []

    def end() -> None:
        while asked:
            prepare()
            asked.pop()()

    def ask(handler: Callable[..., object], number: int, frame: object) -> None:
        if not asked:
            asked.append(partial(handler, number, frame))

    def run(*args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return loop(*args)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)}
        ours = {
            number: (handler, partial(ask, handler))
            for number, handler in handlers.items()
            if callable(handler) and getattr(handler, "__name__", "") == COLD
        }
        for number, (_, patient) in ours.items():
            signal.signal(number, patient)
        hub.on_tick.add(end)
        try:
            return loop(*args)
        finally:
            hub.on_tick.discard(end)
            for number, (handler, patient) in ours.items():
                if signal.getsignal(number) is patient:  # A shutdown that has begun puts others in their place.
                    signal.signal(number, handler)
            end()

    return run


# The handler of a signal sends this one, before anything is ended.
signals.worker_shutting_down.connect(pardon_active, weak=False)
