"""The flag that keeps what has not begun of a batch from running, on every worker, across restarts."""

from __future__ import annotations

from typing import Final

from graft.config import keys
from graft.config.redis_client import shared

CANCEL_KEY: Final = keys.CANCEL


def cancel(batch: str, ttl: float) -> None:
    """Raise the flag of *batch* for *ttl* seconds."""
    shared().set(CANCEL_KEY + batch, 1, ex=max(1, int(ttl)))


def is_cancelled(batch: str) -> bool:
    """Whether the flag of *batch* is up."""
    return bool(shared().exists(CANCEL_KEY + batch))
