"""The metrics of the proof of concept: measured on the live workers, kept in Redis for a day."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.tasks.monitoring.worker_registry import workers
from graft.tasks.queues import depth

KEY: Final = f"{keys.POC}metrics"
KEPT: Final = 1440  # A day of one each minute.
TTL: Final = 2 * 86400
PATIENCE: Final = 2.5
ATTEMPTS: Final = 2  # A late reply to another inspect counts against the limit of this one (kombu 5.7, pidbox).


def measure() -> dict[str, Any]:
    """``workers`` and ``active_tasks`` by node name (as ``inspect`` has them), ``queue_lengths``, ``timestamp``."""
    names = [worker.name for worker in workers()]
    return {
        "workers": _inspect("stats", names),
        "active_tasks": _inspect("active", names),
        "queue_lengths": depth.waiting(),
        "timestamp": datetime.now(UTC).isoformat(),
    }


def _inspect(what: str, names: list[str]) -> dict[str, Any]:
    """The replies to an inspect command, by node name.

    An inspect of named workers ends with the last reply; a broadcast to all always takes its whole timeout.
    """
    replies: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        missing = [name for name in names if name not in replies]
        if missing:
            inspect = app().control.inspect(missing, timeout=PATIENCE, limit=len(missing))
            replies |= getattr(inspect, what)() or {}
    return replies


def keep(figures: dict[str, Any]) -> None:
    """Put *figures* before those of earlier times."""
    with shared().pipeline() as pipe:
        pipe.lpush(KEY, json.dumps(figures, default=repr))
        pipe.ltrim(KEY, 0, KEPT - 1)
        pipe.expire(KEY, TTL)
        pipe.execute()


def kept(limit: int = 60) -> list[dict[str, Any]]:
    """The figures kept last, newest first."""
    return [json.loads(text) for text in shared().lrange(KEY, 0, limit - 1)]
