"""A worker that is told to stop blames nobody for the processes that it takes down.

    SIGTERM (warm)   fetches nothing more, finishes what runs; what the supervisor kills after its patience returns
    SIGQUIT (cold)   waits ``worker_soft_shutdown_timeout``, then ends what runs; its messages return at once

Without a word from here, three restarts while an item runs would look like an item that killed three processes.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import signals
from celery.worker import state

from graft.config.redis_client import connect
from graft.tasks import deliveries

logger = logging.getLogger(__name__)

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
            deliveries.pardon(runs, client)
    except (redis.RedisError, OSError) as error:
        logger.warning(
            "%d runs will count against their items, Redis could not be told otherwise: %r", len(runs), error
        )


# The handler of a signal sends this one, before anything is ended.
signals.worker_shutting_down.connect(pardon_active, weak=False)
