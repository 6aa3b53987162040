"""A resource pool as a hash in Redis, ``resource_pool:<name>``: a number of places that all processes share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from graft.config import lua

KEY: Final = "resource_pool:"

SCRIPT: Final = lua.load(__file__, "resource_pool")


def make(client: Any, name: str, size: int) -> None:
    """Make the pool, or give an existing one another size.

    Raises:
        ValueError: *size* is no whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a whole number of at least 1")
    SCRIPT([KEY + name], ["make", size, datetime.now(UTC).isoformat()], client)


def take(client: Any, name: str) -> bool:
    """Take a place, unless none is free.

    Raises:
        KeyError: there is no such pool.
    """
    return bool(_known(SCRIPT([KEY + name], ["take"], client), name))


def give_back(client: Any, name: str) -> None:
    """Give a place back.

    Raises:
        KeyError: there is no such pool.
        ValueError: none was taken.
    """
    if not _known(SCRIPT([KEY + name], ["give_back"], client), name):
        raise ValueError(f"every place of the resource pool {name!r} is free; one was given back that nobody had taken")


def _known(answer: int, name: str) -> int:
    if answer < 0:
        raise KeyError(name)
    return answer
