"""Whether a Redis is fit to keep messages: pure verdicts on what it says of itself.

For a worker's start and for ``celery -A graft doctor`` alike::

    facts = ask(client)                      # Facts: INFO, CONFIG GET, ACL WHOAMI and TIME, as far as they are allowed
    for finding in judge(facts, url, role):  # Finding(severity, check, message, remedy)
        ...

``severity`` is ``"refuse"`` (messages would be lost; a worker does not start), ``"warn"`` or ``"note"``. What the
server does not let this user ask is unknown, which is a note, never a refusal. *role* is ``"broker"`` or
``"results"``: what a result backend forgets costs an answer, what a broker forgets costs work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

Severity = Literal["refuse", "warn", "note"]
Role = Literal["broker", "results"]

OLDEST: Final = (6, 2)
SKEW_WARNS: Final = 1.0
SKEW_REFUSES: Final = 5.0
MEMORY_WARNS: Final = 0.70
MEMORY_ALARMS: Final = 0.85
LOOPBACK: Final = ("127.", "localhost", "::1")
ASKED: Final = (
    "maxmemory-policy", "appendonly", "appendfsync", "save", "min-replicas-to-write", "timeout", "tcp-keepalive",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, and what to do about it."""

    severity: Severity
    check: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Facts:
    """What a server says of itself; None where it does not let us ask. ``skew`` is our clock minus its, in seconds."""

    info: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, str] | None = None
    user: str | None = None
    skew: float | None = None


def ask(client: Any) -> Facts:
    """The facts of the server behind *client*. Raises RedisError when it cannot be reached."""
    info = _allowed(client.info) or {}
    config: dict[str, str] | None = None
    for name in ASKED:
        found = _allowed(lambda asked=name: client.config_get(asked))
        if found is not None:
            config = {**(config or {}), **{_text(key): _text(value) for key, value in found.items()}}
    user = _allowed(lambda: client.execute_command("ACL", "WHOAMI"))
    before = time.time()
    told = _allowed(client.time)
    after = time.time()
    skew = None if told is None else (before + after) / 2 - (told[0] + told[1] / 1e6)
    return Facts(info, config, None if user is None else _text(user), skew)


def judge(facts: Facts, url: str, role: Role = "broker") -> list[Finding]:
    """What is wrong with the server at *url* (which may carry a password; it is not repeated), worst first."""
    found = [
        *_version(facts),
        *_memory(facts, role),
        *_persistence(facts, role),
        *_replication(facts),
        *_clock(facts, role),
        *_access(facts, url),
    ]
    order: tuple[Severity, ...] = ("refuse", "warn", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _version(facts: Facts) -> Iterator[Finding]:
    version = str(facts.info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if not numbers:
        yield Finding("note", "version", "the server does not tell its version", "allow INFO to this user")
    elif numbers < OLDEST:
        needed = ".".join(map(str, OLDEST))
        yield Finding("refuse", "version", f"Redis {version} is older than {needed}", f"upgrade to {needed} or newer")
    if str(facts.info.get("redis_mode", "standalone")) == "cluster":
        yield Finding(
            "refuse", "mode", "this is a Redis Cluster; a message and its record would lie on different nodes",
            "use one server, with replicas and Sentinel if it must survive its machine",
        )  # fmt: skip


def _memory(facts: Facts, role: Role) -> Iterator[Finding]:
    policy = (facts.config or {}).get("maxmemory-policy") or str(facts.info.get("maxmemory_policy", ""))
    limit, used = int(facts.info.get("maxmemory", 0)), int(facts.info.get("used_memory", 0))
    if policy and policy != "noeviction":
        yield Finding(
            "refuse" if role == "broker" else "warn", "eviction",
            f"maxmemory-policy is {policy}: at maxmemory={limit} Redis deletes waiting messages without a word",
            "CONFIG SET maxmemory-policy noeviction, and write it into redis.conf",
        )  # fmt: skip
    if not limit:
        yield Finding(
            "note", "maxmemory", "maxmemory is not set: a full machine ends the server instead of refusing writes",
            "set maxmemory to about two thirds of the machine's memory",
        )  # fmt: skip
    elif used > MEMORY_WARNS * limit:
        share = used / limit
        yield Finding(
            "warn", "memory",
            f"{share:.0%} of maxmemory={limit} is in use; at 100 % every write is refused"
            + (", and it is nearly there" if share > MEMORY_ALARMS else ""),
            "raise maxmemory, add workers, or shorten GRAFT_RESULT_TTL",
        )  # fmt: skip
    evicted = int(facts.info.get("evicted_keys", 0))
    if evicted:
        yield Finding(
            "warn", "evicted", f"{evicted} keys were evicted since the server started", "see maxmemory-policy"
        )


def _persistence(facts: Facts, role: Role) -> Iterator[Finding]:
    config = facts.config
    appends = (config or {}).get("appendonly") == "yes" if config else bool(int(facts.info.get("aof_enabled", 0)))
    saves = bool((config or {}).get("save"))
    if role == "broker" and not appends:
        what = "only snapshots: a restart goes back to the last one" if saves else "nothing is written to disk"
        yield Finding(
            "warn", "persistence", f"appendonly is off ({what}); what waits is lost when the server restarts",
            "CONFIG SET appendonly yes, and write it into redis.conf with appendfsync everysec",
        )  # fmt: skip
    elif role == "broker" and (config or {}).get("appendfsync") == "no":
        yield Finding(
            "warn", "persistence", "appendfsync is no: a power cut loses what the kernel holds, half a minute's work",
            "CONFIG SET appendfsync everysec",
        )  # fmt: skip
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        status = str(facts.info.get(name, "ok"))
        if status != "ok":
            yield Finding(
                "warn", "disk", f"{name} is {status}: the server's disk is full or broken", "look at the server's log"
            )


def _replication(facts: Facts) -> Iterator[Finding]:
    if str(facts.info.get("role", "master")) != "master":
        yield Finding(
            "refuse", "role", "this server is a replica: it takes no messages",
            "name its master, or Sentinel: sentinel://HOST:26379 with GRAFT_SENTINEL_MASTER",
        )  # fmt: skip
    elif int(facts.info.get("connected_slaves", 0)) and (facts.config or {}).get("min-replicas-to-write") == "0":
        yield Finding(
            "warn", "replicas", "min-replicas-to-write is 0: a master that was cut off accepts what a failover drops",
            "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10",
        )  # fmt: skip


def _clock(facts: Facts, role: Role) -> Iterator[Finding]:
    skew = facts.skew
    if skew is None or role != "broker" or abs(skew) <= SKEW_WARNS:
        return
    direction = "ahead of" if skew > 0 else "behind"
    yield Finding(
        "refuse" if abs(skew) > SKEW_REFUSES else "warn", "clock",
        f"this machine's clock is {abs(skew):.1f} s {direction} the server's; leases and due times would be misread",
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
            "check them as the administrator: celery -A graft doctor; CONFIG GET would also tell the passwords",
        )  # fmt: skip


def _allowed(question: Any) -> Any:
    """The answer, or None when this user may not ask."""
    try:
        return question()
    except ResponseError:  # NoPermissionError is one, and so is an unknown command.
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
