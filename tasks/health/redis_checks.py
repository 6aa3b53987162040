"""The checks of a Redis server. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from graft.tasks.health import measurements
from graft.tasks.health.limits import Limits
from graft.tasks.health.verdicts import State, Verdict, grade

OLDEST_REDIS: Final = (6, 2)
CLIENTS: Final = 0.8


def judge(found: measurements.Redis, limits: Limits) -> Iterator[Verdict]:
    yield _memory(found, limits)
    is_safe = found.policy == "noeviction"
    state: State = "failing" if not is_safe or found.evicted else "ok"
    detail = f"maxmemory-policy is {found.policy}"
    if found.evicted:
        detail += f", {found.evicted} keys were evicted since the last check"
    remedy = "" if state == "ok" else "CONFIG SET maxmemory-policy noeviction: evicted keys are lost work"
    yield Verdict("eviction", found.role, state, detail, found.evicted, 0.0, "keys", remedy)
    yield _persistence(found)
    share = found.clients / found.clients_limit if found.clients_limit else 0.0
    state = grade(share, CLIENTS, 0.95)
    yield Verdict(
        "clients", found.role, state, f"{found.clients} of {found.clients_limit}", found.clients,
        CLIENTS * found.clients_limit, "clients",
        "" if state == "ok" else "raise maxclients; celery -A graft leaks says who opens them",
    )  # fmt: skip
    if found.is_replica or found.replicas:
        yield _replication(found)
    if found.version < OLDEST_REDIS:
        wanted = ".".join(map(str, OLDEST_REDIS))
        yield Verdict(
            "version", found.role, "failing", f"Redis {'.'.join(map(str, found.version))}", None, None, "",
            f"needs {wanted} or newer",
        )  # fmt: skip


def _memory(found: measurements.Redis, limits: Limits) -> Verdict:
    room = found.memory_limit or found.memory_total
    share = found.memory / room if room else 0.0
    state = grade(share, limits.memory, 0.95)
    of = "maxmemory" if found.memory_limit else "the machine's memory, maxmemory is not set"
    remedy = (
        "" if state == "ok" else "raise maxmemory, shorten GRAFT_RESULT_TTL, or see what grows: celery -A graft leaks"
    )
    return Verdict(
        "memory", found.role, state, f"{found.memory >> 20} MiB, {share:.0%} of {of}", share, limits.memory, "share",
        remedy,
    )  # fmt: skip


def _persistence(found: measurements.Redis) -> Verdict:
    if not (found.append_ok and found.save_ok):
        what = "append-only file" if not found.append_ok else "snapshot"
        return Verdict(
            "persistence", found.role, "failing", f"the last write of the {what} failed", None, None, "",
            "look at Redis's log; the disk may be full",
        )  # fmt: skip
    if found.appends:
        return Verdict("persistence", found.role, "ok", "append-only file")
    kind = (
        "snapshots only: a crash loses the minutes since the last" if found.saves else "off: a crash loses everything"
    )
    return Verdict(
        "persistence", found.role, "degraded", kind, None, None, "", "CONFIG SET appendonly yes, and in redis.conf"
    )


def _replication(found: measurements.Redis) -> Verdict:
    if found.is_replica:
        state: State = "failing"
        detail = "this is a replica: it takes no writes" + ("" if found.link_up else ", and its link is down")
        return Verdict(
            "replication", found.role, state, detail, None, None, "", "point CELERY_BROKER_URL at the primary"
        )
    behind = max((lag for _, lag in found.replicas), default=0)
    limit = 16 << 20
    state = "degraded" if behind > limit else "ok"
    return Verdict(
        "replication", found.role, state, f"{len(found.replicas)} replicas, at most {behind} bytes behind", behind,
        limit, "bytes", "" if state == "ok" else "a failover now loses what is behind: look at the replica's network",
    )  # fmt: skip
