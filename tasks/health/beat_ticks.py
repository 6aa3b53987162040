"""When Beat last sent something: each Beat notes it under its name (workers/beat_ticks.py), in Redis's time."""

from __future__ import annotations

from typing import Any, Final

from graft.config import lua

TICKS: Final = "graft:beats"
KEPT: Final = 86400

NOTE: Final = lua.load(__file__, "beat_ticks")


def note(name: str, client: Any) -> None:
    """*name* has just sent a task."""
    NOTE([TICKS], [name, KEPT], client)


def silence(client: Any, now: float) -> float | None:
    """Seconds since any Beat last sent something; None when none did for a day."""
    last = client.zrange(TICKS, -1, -1, withscores=True)
    return max(0.0, now - last[0][1]) if last else None
