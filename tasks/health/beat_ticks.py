"""When Beat last sent something: each Beat notes it under its name, in Redis's time."""

from __future__ import annotations

import logging
import os
import platform
from typing import Any, Final

import redis
from celery import signals

from graft.config import keys, lua
from graft.config.redis_client import shared

logger = logging.getLogger(__name__)

TICKS: Final = keys.BEATS
KEPT: Final = 86400

NOTE: Final = lua.load(__file__, "beat_ticks")


@signals.beat_init.connect
def _note_what_is_sent(sender: Any = None, **_: Any) -> None:
    from graft.tasks.health import beat_schedules

    signals.after_task_publish.connect(_note, weak=False)
    beat_schedules.stand_beside(sender)


def _note(**_: Any) -> None:
    try:
        NOTE([TICKS], [f"{platform.node()}/{os.getpid()}", KEPT], shared())
    except (redis.RedisError, OSError) as error:
        logger.warning("Redis did not take the note that Beat runs; health may call Beat silent: %s", error)


def alive(client: Any, now: float, within: float) -> set[str]:
    """The Beats that have sent something within so many seconds, each as host/pid."""
    return {name.decode() for name in client.zrangebyscore(TICKS, now - within, "+inf")}


def silence(client: Any, now: float) -> float | None:
    """Seconds since any Beat last sent something; None when none did for a day."""
    last = client.zrange(TICKS, -1, -1, withscores=True)
    return max(0.0, now - last[0][1]) if last else None
