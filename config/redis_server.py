"""What a Redis server says of itself, as values: for a worker's start, for the doctor and for the health checks."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from redis.exceptions import ResponseError

Role = Literal["broker", "results"]

ASKED: Final = (
    "maxmemory-policy", "appendonly", "appendfsync", "save", "min-replicas-to-write", "timeout", "tcp-keepalive",
)  # fmt: skip


@dataclass(frozen=True)
class RedisServer:
    """One server, from its INFO. ``memory_limit`` is 0 without a limit, ``memory_total`` the machine's memory.

    ``evicted`` counts keys evicted since the last look. ``replicas`` are (address, bytes behind). ``name`` is what
    people call the server: its role, or "redis" where it has both. "" and () stand for what is not known.
    """

    name: str = "redis"
    version: tuple[int, ...] = ()
    policy: str = ""
    memory: int = 0
    memory_limit: int = 0
    memory_total: int = 0
    clients: int = 0
    clients_limit: int = 0
    evicted: int = 0
    appends: bool = True
    saves: bool = False
    append_ok: bool = True
    save_ok: bool = True
    is_cluster: bool = False
    is_replica: bool = False
    link_up: bool = True
    replicas: tuple[tuple[str, int], ...] = ()

    @property
    def role(self) -> Role:
        return "results" if self.name == "results" else "broker"

    @classmethod
    def read(
        cls, name: str, info: Mapping[str, Any], config: Mapping[str, str] | None = None, evicted: int = 0
    ) -> RedisServer:
        """The server behind *info*, and *config* where it may be read. Pure."""
        offset = int(info.get("master_repl_offset", 0))
        replicas = [info[key] for key in info if re.fullmatch(r"slave\d+", key) and isinstance(info[key], Mapping)]
        config = config or {}
        appends = config["appendonly"] == "yes" if "appendonly" in config else bool(int(info.get("aof_enabled", 0)))
        saved = int(info.get("rdb_last_save_time", 0)) > int(info.get("process_start_time", 0) or 0)
        return cls(
            name=name,
            version=tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:3]),
            policy=config.get("maxmemory-policy") or str(info.get("maxmemory_policy", "")),
            memory=int(info.get("used_memory", 0)),
            memory_limit=int(info.get("maxmemory", 0)),
            memory_total=int(info.get("total_system_memory", 0)),
            clients=int(info.get("connected_clients", 0)),
            clients_limit=int(info.get("maxclients", 0)),
            evicted=evicted,
            appends=appends,
            saves=bool(config["save"]) if "save" in config else saved,
            append_ok="err" not in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")),
            save_ok=info.get("rdb_last_bgsave_status", "ok") != "err",
            is_cluster=info.get("redis_mode") == "cluster",
            is_replica=str(info.get("role", "master")) != "master",
            link_up=info.get("master_link_status", "up") == "up",
            replicas=tuple((str(one.get("ip")), max(0, offset - int(one.get("offset", offset)))) for one in replicas),
        )


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
    now = _allowed(client.time)
    after = time.time()
    skew = None if now is None else (before + after) / 2 - (now[0] + now[1] / 1e6)
    return Facts(info, config, None if user is None else _text(user), skew)


def _allowed(question: Any) -> Any:
    """The reply, or None when this user may not ask."""
    try:
        return question()
    except ResponseError:  # NoPermissionError is one, and so is an unknown command.
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
