"""What INFO says about each Redis of the deployment, as the checks want it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config.deployment import settings
from graft.tasks.health.measurements import Redis

EVICTED: Final = "graft:health:evicted"


def all_of(client: Any, queue_side: Any) -> tuple[Redis, ...]:
    """The result backend's server and the broker's; one where they are the same."""
    if settings().backend_url == settings().broker_url:
        return (look(client, "redis", client),)
    return look(queue_side, "broker", client), look(client, "results", client)


def look(client: Any, role: str, memory: Any) -> Redis:
    """The server behind *client*; evictions are counted since the last look, which *memory* remembers."""
    info: Mapping[str, Any] = client.info()
    evicted = int(info.get("evicted_keys", 0))
    last = memory.hget(EVICTED, role)
    with suppress(NoPermissionError):  # Whoever may only read (config/acl.py: viewer) may look as well.
        memory.hset(EVICTED, role, evicted)
    return read(role, info, max(0, evicted - int(last or 0)))


def read(role: str, info: Mapping[str, Any], evicted: int = 0) -> Redis:
    """INFO as a value. Pure."""
    offset = int(info.get("master_repl_offset", 0))
    replicas = [info[name] for name in info if re.fullmatch(r"slave\d+", name) and isinstance(info[name], Mapping)]
    return Redis(
        role=role,
        version=tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "0")))[:3]),
        policy=str(info.get("maxmemory_policy", "unknown")),
        memory=int(info.get("used_memory", 0)),
        memory_limit=int(info.get("maxmemory", 0)),
        memory_total=int(info.get("total_system_memory", 0)),
        clients=int(info.get("connected_clients", 0)),
        clients_limit=int(info.get("maxclients", 0)),
        evicted=evicted,
        appends=bool(int(info.get("aof_enabled", 0))),
        saves=int(info.get("rdb_last_save_time", 0)) > int(info.get("process_start_time", 0) or 0),
        append_ok="err" not in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")),
        save_ok=info.get("rdb_last_bgsave_status", "ok") != "err",
        is_replica=info.get("role") == "slave",
        link_up=info.get("master_link_status", "up") == "up",
        replicas=tuple((str(one.get("ip")), max(0, offset - int(one.get("offset", offset)))) for one in replicas),
    )
