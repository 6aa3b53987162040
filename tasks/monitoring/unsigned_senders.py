"""Who has sent messages without the deployment's signature: to be moved over before those are refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.redis_client import shared

DAY: Final = 86400.0


def note(senders: Iterable[str], client: Any) -> None:
    """Workers have taken unsigned messages of *senders*, given as processes (Celery's ``origin``)."""
    now = redis_clock.now()
    with client.pipeline(transaction=False) as pipe:
        pipe.zadd(keys.UNSIGNED, dict.fromkeys(senders, now))
        pipe.zremrangebyscore(keys.UNSIGNED, 0, now - DAY)
        pipe.expire(keys.UNSIGNED, int(DAY))
        pipe.execute()


def of_the_last_day(client: Any = None) -> tuple[str, ...]:
    """The processes that have sent unsigned messages within a day."""
    found = (client or shared()).zrangebyscore(keys.UNSIGNED, redis_clock.now() - DAY, "+inf")
    return tuple(name.decode() for name in found)
