"""Beat notes its ticks: each time it has sent something, it says so in Redis."""

from __future__ import annotations

import logging
import os
import platform
from typing import Any

import redis
from celery import signals

from graft.config.redis_client import shared
from graft.tasks.health import beat_ticks

logger = logging.getLogger(__name__)


@signals.beat_init.connect
def _watch(**_: Any) -> None:
    signals.after_task_publish.connect(_note, weak=False)


def _note(**_: Any) -> None:
    try:
        beat_ticks.note(f"{platform.node()}/{os.getpid()}", shared())
    except (redis.RedisError, OSError) as error:
        logger.warning("the tick of Beat cannot be noted: %s", error)
