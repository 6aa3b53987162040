"""Settings -> RedBeat's options: the schedule and a lock in Redis, so that a second Beat can stand by.

celery -A graft beat -S redbeat.RedBeatScheduler        (extra "ha")
"""

from __future__ import annotations

from typing import Any, Final

from graft.config import keys
from graft.config.addresses import as_redis_py, login, sentinels
from graft.config.settings import Settings

LOCK: Final = f"{keys.REDBEAT}lock"
LOCK_TIMEOUT: Final = 30  # The leader extends it with each tick; whoever stands by takes over when it has run out.
TICK: Final = 5  # Also how often one that stands by looks.


def options(config: Settings) -> dict[str, Any]:
    """What RedBeat reads from Celery's configuration; without it, it would guess from the broker's."""
    url, connection = _connection(config)
    return {
        "redbeat_redis_url": url,
        # Without a retry period RedBeat ends at the first error of Redis (2.4).
        "redbeat_redis_options": {"retry_period": 60, "socket_timeout": 10, **connection},
        "redbeat_key_prefix": keys.REDBEAT,
        "redbeat_lock_key": LOCK,
        "redbeat_lock_timeout": LOCK_TIMEOUT,
        "beat_max_loop_interval": TICK,
    }


def _connection(config: Settings) -> tuple[str, dict[str, Any]]:
    url = config.broker_url
    found = sentinels(url)
    if found is not None:
        master = {"sentinels": found.hosts, "service_name": config.sentinel_master, "db": found.database}
        return "redis-sentinel", master | found.login
    # Celery masks a password among the options where it shows settings, but not one in this address.
    scheme, _, rest = url.partition("://")
    return as_redis_py(f"{scheme}://{rest.rpartition('@')[2]}"), dict(login(url))
