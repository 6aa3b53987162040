"""Our own connections to the deployment's Redis, beside those that kombu and Celery keep.

redis-py gives a plain client a ``socket_timeout`` of 5 s and retries (8.1); both are set here on purpose, because a
retried command may run twice and a blocking read needs a longer patience.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from graft.config.settings import Settings, settings


def connect(config: Settings | None = None, *, socket_timeout: float | None = 10.0, **options: Any) -> Any:
    """A client of the result backend's Redis, where this project keeps its own keys. Connects on first use.

    Typed as Any: redis-py's own types cannot tell raw replies, which these are, from decoded ones.
    """
    config = config or settings()
    url = config.backend_url.replace("redis+socket://", "unix://").replace("socket://", "unix://")
    return redis.Redis.from_url(
        url,
        socket_timeout=socket_timeout,
        socket_connect_timeout=config.connect_timeout,
        socket_keepalive=True,
        health_check_interval=10,
        retry=options.pop("retry", None) or Retry(NoBackoff(), 0),
        client_name=options.pop("client_name", "graft"),
        **options,
    )


_patience = Retry(NoBackoff(), 0)


@cache
def shared() -> Any:
    """This process's one pooled client for short commands."""
    return connect(retry=_patience)


def be_patient(seconds: float) -> None:
    """Have :func:`shared` sit out an outage of about *seconds*: for workers, which must not blame a task for it.

    A command whose reply was lost runs twice then; everything sent through it allows that.
    """
    global _patience
    _patience = Retry(ExponentialBackoff(cap=1.0, base=0.05), int(seconds) + 5)
    shared.cache_clear()


# A forked pool process must not read answers meant for its parent.
os.register_at_fork(after_in_child=shared.cache_clear)
