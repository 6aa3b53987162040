"""The queues that exist: declared by this app, or at some time by anybody who sends to this Redis or reads from it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.queues import table
from graft.config.redis_client import broker

FORGOTTEN_AFTER: Final = 30 * 86400.0  # Seconds after which a queue that nobody declares any more is not listed.


def names(client: Any = None) -> list[str]:
    """Every queue that exists, those of this app first; *client* is one of the broker's Redis."""
    with broker() if client is None else nullcontext(client) as connected:
        seen = connected.zrangebyscore(keys.QUEUES, redis_clock.now() - FORGOTTEN_AFTER, "+inf")
    return list(dict.fromkeys([*table().names, *sorted(name.decode() for name in seen)]))


def checked(queue: str, client: Any = None) -> str:
    """*queue*, if it exists.

    Raises:
        ValueError: nobody has declared it.
    """
    if queue not in (known := names(client)):
        raise ValueError(f"there is no queue {queue!r}; there are {', '.join(known)}")
    return queue
