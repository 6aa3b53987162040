"""The figures of the proof of concept: measured on the live workers, kept in Redis for all to read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.tasks.monitoring.worker_registry import workers
from graft.tasks.queues import depth

KEY: Final = "graft:poc:metrics"
KEPT: Final = 1440  # A day of one each minute.
TTL: Final = 2 * 86400
PATIENCE: Final = 2.5
ASKED: Final = 2  # Times: a late answer to somebody else's question counts against the limit (kombu 5.7, pidbox).


def measure() -> dict[str, Any]:
    """``workers`` and ``active_tasks`` by node name (as ``inspect`` has them), ``queue_lengths``, ``timestamp``."""
    names = [worker.name for worker in workers()]
    return {
        "workers": _ask("stats", names),
        "active_tasks": _ask("active", names),
        "queue_lengths": depth.waiting(),
        "timestamp": datetime.now(UTC).isoformat(),
    }


def _ask(what: str, names: list[str]) -> dict[str, Any]:
    """The answers to an inspect command, by node name.

    Asking by name ends with the last answer; a broadcast to nobody in particular always takes its whole timeout.
    """
    answers: dict[str, Any] = {}
    for _ in range(ASKED):
        missing = [name for name in names if name not in answers]
        if missing:
            inspect = app().control.inspect(missing, timeout=PATIENCE, limit=len(missing))
            answers |= getattr(inspect, what)() or {}
    return answers


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
