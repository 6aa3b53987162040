"""Results that outlived the time the deployment keeps them.

Celery gives each result an expiry when it is written. What stays behind was written with another setting or by hand,
or lost its expiry: an expiry that is too long keeps Redis full for as long.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from graft.config import lua
from graft.config.deployment import settings
from graft.config.redis_client import shared

RESULTS: Final = "celery-task-meta-*"
PAGE: Final = 200

REMOVE: Final = lua.load(__file__, "expired_results")


def remove(client: Any = None) -> int:
    """Remove the results of tasks that ended longer than ``result_ttl`` ago; how many."""
    client = client or shared()
    oldest = (datetime.now(UTC) - timedelta(seconds=settings().result_ttl)).isoformat()
    removed, cursor = 0, 0
    while True:
        cursor, keys = client.scan(cursor, match=RESULTS, count=PAGE)
        if keys:
            removed += int(REMOVE(keys, [oldest], client))
        if cursor == 0:
            return removed
