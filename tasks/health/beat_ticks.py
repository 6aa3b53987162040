"""When Beat last sent something: each Beat notes it under its name (workers/beat_ticks.py), in Redis's time."""

from __future__ import annotations

from typing import Any, Final

TICKS: Final = "graft:beats"
KEPT: Final = 86400

_NOTE: Final = f"""
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - {KEPT})
redis.call('EXPIRE', KEYS[1], {KEPT})
"""


def note(name: str, client: Any) -> None:
    """*name* has just sent a task."""
    client.eval(_NOTE, 1, TICKS, name)


def silence(client: Any, now: float) -> float | None:
    """Seconds since any Beat last sent something; None when none did for a day."""
    last = client.zrange(TICKS, -1, -1, withscores=True)
    return max(0.0, now - last[0][1]) if last else None
