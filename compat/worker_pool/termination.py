"""Ending what workers run of a pool: by force where Redis lets this user command them, else by waiting for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError

logger = logging.getLogger(__name__)


def end(envelopes: Sequence[str]) -> Callable[[], bool]:
    """Have the processes that run *envelopes* killed; what is returned asks whether any of them still runs."""
    from graft.config.deployment import app

    if not envelopes:
        return lambda: False
    try:
        app().control.revoke(list(envelopes), terminate=True, signal="SIGKILL")
    except (NoPermissionError, OperationalError) as error:  # Celery wraps the one in the other.
        if not isinstance(error if isinstance(error, NoPermissionError) else error.__cause__, NoPermissionError):
            raise
        logger.warning(
            "what the pool still runs (tasks: %d) is not ended by force, since Redis lets this user command no worker "
            "(%s); connect as one that may: operator, of config/acl.py", len(envelopes), error,
        )  # fmt: skip
        return lambda: _are_held(envelopes)
    return lambda: _are_run(envelopes)


def _are_run(envelopes: Sequence[str]) -> bool:
    """Whether a worker says so: what was ended by force cannot, and its lease would only run out later."""
    from graft.config.deployment import app

    active = app().control.inspect(timeout=0.5).active()
    return any(request["id"] in envelopes for requests in (active or {}).values() for request in requests)


def _are_held(envelopes: Sequence[str]) -> bool:
    """Whether a worker holds the message of one, as far as Redis tells this user."""
    from graft.config.redis_client import broker
    from graft.tasks.queues import locate

    try:
        with broker() as queue_side:
            places = locate.where(envelopes, queue_side)
    except NoPermissionError:
        return True
    return places is None or any(place != "queued" for place in places.values())
