"""A Redis server of the deployment: read from its INFO, and judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoPermissionError

from graft.config.deployment import settings
from graft.config.redis_checks import OLDEST
from graft.config.settings import Settings
from graft.tasks.health.verdicts import HealthState, Verdict, grade

EVICTED: Final = "graft:health:evicted"
CLIENTS: Final = 0.8
ALMOST_FULL: Final = 0.95
REPLICATION_LAG: Final = 16 << 20


@dataclass(frozen=True)
class RedisServer:
    """One Redis server. ``memory_limit`` is 0 without a limit, ``memory_total`` the machine's memory.

    ``evicted`` counts keys evicted since the last check. ``replicas`` are (address, bytes behind).
    """

    role: str
    version: tuple[int, ...]
    policy: str
    memory: int
    memory_limit: int
    memory_total: int
    clients: int
    clients_limit: int
    evicted: int = 0
    appends: bool = True
    saves: bool = False
    append_ok: bool = True
    save_ok: bool = True
    is_replica: bool = False
    link_up: bool = True
    replicas: tuple[tuple[str, int], ...] = ()


# ---- read ------------------------------------------------------------------------------------------------------------


def measure(client: Any, queue_side: Any) -> tuple[RedisServer, ...]:
    """The result backend's server and the broker's; one where they are the same."""
    if settings().backend_url == settings().broker_url:
        return (_measure(client, "redis", client),)
    return _measure(queue_side, "broker", client), _measure(client, "results", client)


def _measure(client: Any, role: str, store: Any) -> RedisServer:
    """The server behind *client*; *store* keeps the count of evictions that the next check compares with."""
    info: Mapping[str, Any] = client.info()
    evicted = int(info.get("evicted_keys", 0))
    last = store.hget(EVICTED, role)
    with suppress(NoPermissionError):  # A user that may only read (config/acl.py: viewer) may check as well.
        store.hset(EVICTED, role, evicted)
    return read(role, info, max(0, evicted - int(last or 0)))


def read(role: str, info: Mapping[str, Any], evicted: int = 0) -> RedisServer:
    """INFO as a value. Pure."""
    offset = int(info.get("master_repl_offset", 0))
    replicas = [info[name] for name in info if re.fullmatch(r"slave\d+", name) and isinstance(info[name], Mapping)]
    return RedisServer(
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


# ---- judged ----------------------------------------------------------------------------------------------------------


def judge(found: RedisServer, limits: Settings) -> Iterator[Verdict]:
    """The verdicts on one server. Pure."""
    yield _memory(found, limits)
    yield _eviction(found)
    yield _persistence(found)
    share = found.clients / found.clients_limit if found.clients_limit else 0.0
    state = grade(share, CLIENTS, ALMOST_FULL)
    yield Verdict(
        "clients", found.role, state, f"{found.clients} of at most {found.clients_limit} clients are connected",
        found.clients, CLIENTS * found.clients_limit, "clients",
        "raise maxclients; celery -A graft leaks shows who opens connections",
    )  # fmt: skip
    if found.is_replica or found.replicas:
        yield _replication(found)
    if found.version < OLDEST:
        yield Verdict(
            "version", found.role, "failing", f"Redis {'.'.join(map(str, found.version))} is too old", None, None, "",
            f"upgrade to {'.'.join(map(str, OLDEST))} or newer",
        )  # fmt: skip


def _memory(found: RedisServer, limits: Settings) -> Verdict:
    limit = found.memory_limit or found.memory_total
    share = found.memory / limit if limit else 0.0
    state = grade(share, limits.health_memory, ALMOST_FULL)
    of = "maxmemory" if found.memory_limit else "the machine's memory (maxmemory is not set)"
    remedy = "raise maxmemory, shorten GRAFT_RESULT_TTL, or find what grows: celery -A graft leaks"
    return Verdict(
        "memory", found.role, state, f"{found.memory >> 20} MiB in use, {share:.0%} of {of}", share,
        limits.health_memory, "share", remedy,
    )  # fmt: skip


def _eviction(found: RedisServer) -> Verdict:
    state: HealthState = "ok" if found.policy == "noeviction" and not found.evicted else "failing"
    detail = f"maxmemory-policy is {found.policy}"
    if found.evicted:
        detail += f"; Redis has deleted {found.evicted} keys since the last check"
    remedy = "CONFIG SET maxmemory-policy noeviction: a deleted key may be a task"
    return Verdict("eviction", found.role, state, detail, found.evicted, 0.0, "keys", remedy)


def _persistence(found: RedisServer) -> Verdict:
    state: HealthState = "degraded"
    remedy = "CONFIG SET appendonly yes, and write it into redis.conf"
    if not (found.append_ok and found.save_ok):
        what = "append-only file" if not found.append_ok else "snapshot"
        state, detail = "failing", f"the last write of the {what} failed"
        remedy = "read Redis's log; the disk may be full"
    elif found.appends:
        state, detail, remedy = "ok", "the append-only file is on", ""
    elif found.saves:
        detail = "only snapshots are written: a crash loses all that came after the last one"
    else:
        detail = "nothing is written to disk: a crash loses everything"
    return Verdict("persistence", found.role, state, detail, None, None, "", remedy)


def _replication(found: RedisServer) -> Verdict:
    if found.is_replica:
        detail = "this server is a replica and takes no writes" + ("" if found.link_up else "; its link is down")
        return Verdict(
            "replication", found.role, "failing", detail, None, None, "", "set CELERY_BROKER_URL to the primary"
        )
    behind = max((lag for _, lag in found.replicas), default=0)
    state: HealthState = "degraded" if behind > REPLICATION_LAG else "ok"
    return Verdict(
        "replication", found.role, state, f"{len(found.replicas)} replicas, at most {behind} bytes behind", behind,
        REPLICATION_LAG, "bytes",
        "check the replica's network: a failover now loses what is not copied yet",
    )  # fmt: skip
