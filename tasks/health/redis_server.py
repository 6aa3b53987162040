"""The Redis servers of the deployment: read, and judged by the limits of config/redis_checks.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config import redis_checks
from graft.config.deployment import settings
from graft.config.redis_server import RedisServer
from graft.config.settings import Settings
from graft.tasks.health.verdicts import HealthState, Verdict

EVICTED: Final = "graft:health:evicted"
STATES: Final[dict[redis_checks.Severity, HealthState]] = {
    "refuse": "failing",
    "alarm": "failing",
    "warn": "degraded",
    "note": "ok",
    "ok": "ok",
}


def measure(client: Any, queue_side: Any) -> tuple[RedisServer, ...]:
    """The result backend's server and the broker's; one where they are the same."""
    if settings().backend_url == settings().broker_url:
        return (_measure(client, "redis", client),)
    return _measure(queue_side, "broker", client), _measure(client, "results", client)


def _measure(client: Any, name: str, store: Any) -> RedisServer:
    """The server behind *client*; *store* keeps the count of evictions that the next check compares with."""
    info = client.info()
    evicted = int(info.get("evicted_keys", 0))
    last = store.hget(EVICTED, name)
    with suppress(NoPermissionError):  # A user that may only read (config/acl.py: viewer) may check as well.
        store.hset(EVICTED, name, evicted)
    return RedisServer.read(name, info, evicted=max(0, evicted - int(last or 0)))


def judge(server: RedisServer, limits: Settings) -> Iterator[Verdict]:
    """A verdict for each check of *server*. Pure."""
    for one in redis_checks.watch(server, limits.health_memory):
        state = STATES[one.severity]
        yield Verdict(one.check, server.name, state, one.message, one.value, one.limit, one.unit, one.remedy)
