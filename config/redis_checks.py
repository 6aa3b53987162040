"""Whether a Redis is fit to keep messages: pure verdicts, and the one set of limits for them.

For a worker's start and for ``celery -A graft doctor``::

    for finding in judge(ask(client), url, role):  # Finding(severity, check, message, remedy), the worst first
        ...

The health checks repeat :func:`watch` while the deployment runs. A result backend may forget what a broker may not:
that costs an outcome, not work. A question that the server forbids this user is a note, never a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from graft.config.deployment import app_name
from graft.config.redis_server import Facts, RedisServer, Role

# "refuse": messages would be lost, a worker does not start. "alarm" and "warn" are said at start; health calls the
# first three failing, failing and degraded.
Severity = Literal["refuse", "alarm", "warn", "note", "ok"]
ORDER: Final[tuple[Severity, ...]] = ("refuse", "alarm", "warn", "note", "ok")

OLDEST: Final = (6, 2)
SKEW_WARNS: Final = 1.0
SKEW_REFUSES: Final = 5.0
MEMORY_WARNS: Final = 0.8  # GRAFT_HEALTH_MEMORY changes it for the health checks.
MEMORY_ALARMS: Final = 0.95
CLIENTS_WARN: Final = 0.8
CLIENTS_ALARM: Final = 0.95
LAG_WARNS: Final = 16 << 20  # Bytes that a replica may be behind.
LOOPBACK: Final = ("127.", "localhost", "::1")


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it; ``value`` and ``limit`` are in *unit*, where there are numbers."""

    severity: Severity
    check: str
    message: str
    remedy: str = ""
    value: float | None = None
    limit: float | None = None
    unit: str = ""


def judge(facts: Facts, url: str, role: Role = "broker") -> list[Finding]:
    """What is wrong with the server at *url* (which may carry a password; it is not repeated), worst first."""
    server = RedisServer.read(role, facts.info, facts.config)
    found = [
        *watch(server),
        *_limits(server, facts),
        *_durability(server, facts),
        *_clock(facts, role),
        *_access(facts, url),
    ]
    return sorted((one for one in found if one.severity != "ok"), key=lambda finding: ORDER.index(finding.severity))


def watch(server: RedisServer, memory_warns: float = MEMORY_WARNS) -> Iterator[Finding]:
    """The checks that INFO is enough for, also those that found nothing wrong."""
    if server.version and server.version < OLDEST:
        version, needed = (".".join(map(str, numbers)) for numbers in (server.version, OLDEST))
        yield Finding("refuse", "version", f"Redis {version} is older than {needed}", f"upgrade to {needed} or newer")
    yield _memory(server, memory_warns)
    yield _eviction(server)
    yield _persistence(server)
    share = server.clients / server.clients_limit if server.clients_limit else 0.0
    severity = _graded(share, CLIENTS_WARN, CLIENTS_ALARM)
    yield Finding(
        severity, "clients", f"{server.clients} of {server.clients_limit} clients are connected",
        "" if severity == "ok" else f"raise maxclients; celery -A {app_name()} leaks says who opens them",
        server.clients, CLIENTS_WARN * server.clients_limit, "clients",
    )  # fmt: skip
    if server.is_replica or server.replicas:
        yield _replication(server)


def _graded(value: float, warns: float, alarms: float) -> Severity:
    return "alarm" if value > alarms else "warn" if value > warns else "ok"


def _memory(server: RedisServer, warns: float) -> Finding:
    room = server.memory_limit or server.memory_total
    share = server.memory / room if room else 0.0
    severity = _graded(share, warns, MEMORY_ALARMS)
    of = f"maxmemory={server.memory_limit}" if server.memory_limit else "the machine's memory"
    return Finding(
        severity, "memory", f"{server.memory >> 20} MiB, {share:.0%} of {of}, are in use; a full Redis refuses writes",
        "" if severity == "ok" else "raise maxmemory, add workers, shorten GRAFT_RESULT_TTL, or see what grows: "
        f"celery -A {app_name()} leaks",
        share, warns, "share",
    )  # fmt: skip


def _eviction(server: RedisServer) -> Finding:
    remedy = "CONFIG SET maxmemory-policy noeviction, and write it into redis.conf: evicted keys are lost work"
    if server.policy not in ("", "noeviction"):
        severity: Severity = "refuse" if server.role == "broker" else "warn"
        message = (
            f"maxmemory-policy is {server.policy}: at maxmemory={server.memory_limit} Redis deletes waiting messages "
            "without a word"
        )
        return Finding(severity, "eviction", message, remedy, server.evicted, 0.0, "keys")
    if server.evicted:
        message = f"{server.evicted} keys were evicted since the last look"
        return Finding("alarm", "eviction", message, remedy, server.evicted, 0.0, "keys")
    return Finding("ok", "eviction", f"maxmemory-policy is {server.policy or 'unknown'}", "", 0, 0.0, "keys")


def _persistence(server: RedisServer) -> Finding:
    if not (server.append_ok and server.save_ok):
        what = "append-only file" if not server.append_ok else "snapshot"
        return Finding(
            "alarm", "persistence", f"the last write of the {what} failed", "look at Redis's log; the disk may be full"
        )  # fmt: skip
    if server.appends:
        return Finding("ok", "persistence", "append-only file")
    what = "only snapshots: a restart goes back to the last one" if server.saves else "nothing is written to disk"
    if server.role == "results":
        return Finding("ok", "persistence", what)
    return Finding(
        "warn", "persistence", f"appendonly is off ({what}); what waits is lost when the server restarts",
        "CONFIG SET appendonly yes, and write it into redis.conf with appendfsync everysec",
    )  # fmt: skip


def _replication(server: RedisServer) -> Finding:
    if server.is_replica:
        return Finding(
            "refuse", "replication",
            f"this server is a replica: it takes no messages{'' if server.link_up else ', and its link is down'}",
            "name its primary, or Sentinel: sentinel://HOST:26379 with GRAFT_SENTINEL_MASTER",
        )  # fmt: skip
    behind = max(lag for _, lag in server.replicas)
    severity: Severity = "warn" if behind > LAG_WARNS else "ok"
    return Finding(
        severity, "replication", f"{len(server.replicas)} replicas are at most {behind} bytes behind",
        "" if severity == "ok" else "a failover now loses what is behind: look at the replica's network",
        behind, LAG_WARNS, "bytes",
    )  # fmt: skip


def _limits(server: RedisServer, facts: Facts) -> Iterator[Finding]:
    if not server.version:
        yield Finding("note", "version", "the server does not tell its version", "allow INFO to this user")
    if server.is_cluster:
        yield Finding(
            "refuse", "mode", "this is a Redis Cluster; a message and its record would lie on different nodes",
            "use one server, with replicas and Sentinel if it must survive its machine",
        )  # fmt: skip
    if not server.memory_limit:
        yield Finding(
            "note", "maxmemory", "maxmemory is not set: a full machine ends the server instead of refusing writes",
            "set maxmemory to about two thirds of the machine's memory",
        )  # fmt: skip
    evicted = int(facts.info.get("evicted_keys", 0))
    if evicted:
        yield Finding(
            "warn", "evicted", f"{evicted} keys were evicted since the server started", "see maxmemory-policy"
        )


def _durability(server: RedisServer, facts: Facts) -> Iterator[Finding]:
    config = facts.config or {}
    if server.role == "broker" and server.appends and config.get("appendfsync") == "no":
        yield Finding(
            "warn", "persistence", "appendfsync is no: a power cut loses what the kernel holds, half a minute's work",
            "CONFIG SET appendfsync everysec",
        )  # fmt: skip
    has_replicas = int(facts.info.get("connected_slaves", 0)) and not server.is_replica
    if has_replicas and config.get("min-replicas-to-write") == "0":
        yield Finding(
            "warn", "replicas", "min-replicas-to-write is 0: a primary that was cut off accepts what a failover drops",
            "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10",
        )  # fmt: skip


def _clock(facts: Facts, role: Role) -> Iterator[Finding]:
    skew = facts.skew
    if skew is None or role != "broker" or abs(skew) <= SKEW_WARNS:
        return
    direction = "ahead of" if skew > 0 else "behind"
    yield Finding(
        "refuse" if abs(skew) > SKEW_REFUSES else "warn", "clock",
        f"this machine's clock is {abs(skew):.1f} s {direction} the server's; due times given as a time of day, logs "
        "and events would be misread",
        "run NTP (chrony, systemd-timesyncd) on both",
    )  # fmt: skip


def _access(facts: Facts, url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    is_local = "socket" in parts.scheme or parts.scheme == "unix" or (parts.hostname or "").startswith(LOOPBACK)
    if not is_local and not parts.scheme.startswith(("rediss", "grafts")):
        yield Finding(
            "warn", "tls", f"{parts.hostname} is reached without TLS: passwords and messages can be read on the way",
            "use rediss:// with ssl_cert_reqs=required, or a network of your own",
        )  # fmt: skip
    if not is_local and not parts.password:
        yield Finding("warn", "password", f"{parts.hostname} asks for no password", "set requirepass, or ACL users")
    elif not is_local and facts.user == "default":
        yield Finding(
            "note", "acl", "this process is the default user, who may do everything, FLUSHALL included",
            "give each role a user of its own: python -m graft.config.acl DIRECTORY writes them",
        )  # fmt: skip
    if facts.config is None:
        yield Finding(
            "note", "config",
            "this user may not read the server's configuration; appendfsync and min-replicas-to-write were not checked",
            f"check them as the administrator: celery -A {app_name()} doctor; CONFIG GET would also tell the passwords",
        )  # fmt: skip
