"""Reads the addresses of the deployment's Redis: the one place that knows how they are written.

    redis://USER:PASSWORD@HOST:6379/0 · rediss://… · redis+socket:///PATH · sentinel://:PASSWORD@HOST:26379/0;sentinel://…

Users and passwords are quoted as in every URL (``p%40ss``). Those of the first Sentinel, and its database, are the
master's.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

SENTINEL: Final = "sentinel://"
SENTINEL_PORT: Final = 26379


class Sentinels(NamedTuple):
    """The Sentinels that know the master, and how to log in to it."""

    hosts: list[tuple[str, int]]
    login: dict[str, str]
    database: int


def sentinels(address: str) -> Sentinels | None:
    """The Sentinels of *address*; None for the address of a server."""
    if not address.startswith(SENTINEL):
        return None
    urls = address.split(";")
    parts = [urlsplit(url) for url in urls]
    hosts = [(part.hostname or "127.0.0.1", part.port or SENTINEL_PORT) for part in parts]
    return Sentinels(hosts, login(urls[0]), int(parts[0].path.strip("/") or 0))


def login(url: str) -> dict[str, str]:
    """``username`` and ``password`` of *url*, as far as it has them."""
    parts = urlsplit(url)
    found = {"username": parts.username, "password": parts.password}
    return {name: unquote(value) for name, value in found.items() if value}


def as_redis_py(url: str) -> str:
    """*url* of a server as redis-py spells it: it has another name for a Unix socket."""
    return url.replace("redis+socket://", "unix://").replace("socket://", "unix://")
