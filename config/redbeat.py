"""Settings -> RedBeat's options: the schedule and a lock in Redis, so that a second Beat can stand by.

celery -A graft beat -S redbeat.RedBeatScheduler        (extra "ha")
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from graft.config.settings import Settings

LOCK: Final = "graft:redbeat:lock"
LOCK_TIMEOUT: Final = 30  # The leader extends it with each tick; whoever stands by takes over when it has run out.
TICK: Final = 5  # Also how often one that stands by looks.
SENTINEL_PORT: Final = 26379


def options(config: Settings) -> dict[str, Any]:
    """What RedBeat reads from Celery's configuration; without it, it would guess from the broker's."""
    url, connection = _connection(config)
    return {
        "redbeat_redis_url": url,
        # Without a retry period RedBeat ends at the first error of Redis (2.4).
        "redbeat_redis_options": {"retry_period": 60, "socket_timeout": 10, **connection},
        "redbeat_key_prefix": "graft:redbeat:",
        "redbeat_lock_key": LOCK,
        "redbeat_lock_timeout": LOCK_TIMEOUT,
        "beat_max_loop_interval": TICK,
    }


def _connection(config: Settings) -> tuple[str, dict[str, Any]]:
    url = config.broker_url
    if not url.startswith("sentinel://"):
        return url.replace("redis+socket://", "unix://"), {}
    parts = [urlsplit(part) for part in url.split(";")]
    first = parts[0]
    found: dict[str, Any] = {
        "sentinels": [(part.hostname, part.port or SENTINEL_PORT) for part in parts],
        "service_name": config.sentinel_master,
        "db": int(first.path.strip("/") or 0),
    }
    if first.password:
        found["password"] = unquote(first.password)
    if first.username:
        found["username"] = unquote(first.username)
    return "redis-sentinel", found
