"""When a message is due, and when it has expired: by the time of the deployment, whatever this machine's clock says."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any, Final

from celery.worker import state
from celery.worker.request import Request

from graft.config import redis_clock

SMALL: Final = 0.5  # Seconds by which the clock may be wrong without any need to correct what a message says.


def install() -> None:
    """Have requests of this process expire by the time of the deployment."""
    Request.maybe_expire = _maybe_expire


def to_local_clock(message: Any) -> None:
    """Correct the due time of *message* (of kombu) by what this machine's clock is wrong: Celery reads that clock."""
    eta = message.headers.get("eta")
    if not eta:
        return
    ahead = time.time() - redis_clock.now()
    if abs(ahead) > SMALL:
        corrected = datetime.fromisoformat(eta) + timedelta(seconds=ahead)
        message.headers = {**message.headers, "eta": corrected.isoformat()}


def _maybe_expire(self: Any) -> bool:
    """Mark the task as revoked, as Celery does, if its time has passed."""
    if not self.expires or self.expires.timestamp() >= redis_clock.now():
        return False
    state.revoked.add(self.id)
    return True
