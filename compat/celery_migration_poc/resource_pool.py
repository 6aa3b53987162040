"""A resource pool as a hash in Redis, ``resource_pool:<name>``: a number of places that all processes share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

KEY: Final = "resource_pool:"

# Places that are taken stay taken when a pool is made again with another size.
_MAKE: Final = """
local size, available = unpack(redis.call('HMGET', KEYS[1], 'size', 'available'))
local taken = size and available and (size - available) or 0
redis.call('HSET', KEYS[1], 'size', ARGV[1], 'available', math.max(0, ARGV[1] - taken), 'created_at', ARGV[2])
"""
_TAKE: Final = """
local available = tonumber(redis.call('HGET', KEYS[1], 'available'))
if not available then return -1 end
if available < 1 then return 0 end
redis.call('HINCRBY', KEYS[1], 'available', -1)
return 1
"""
_GIVE_BACK: Final = """
local size, available = unpack(redis.call('HMGET', KEYS[1], 'size', 'available'))
if not size then return -1 end
if tonumber(available) >= tonumber(size) then return 0 end
redis.call('HINCRBY', KEYS[1], 'available', 1)
return 1
"""


def make(client: Any, name: str, size: int) -> None:
    """Make the pool, or give an existing one another size.

    Raises:
        ValueError: *size* is no whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a whole number of at least 1")
    client.eval(_MAKE, 1, KEY + name, size, datetime.now(UTC).isoformat())


def take(client: Any, name: str) -> bool:
    """Take a place, unless none is free.

    Raises:
        KeyError: there is no such pool.
    """
    return bool(_known(client.eval(_TAKE, 1, KEY + name), name))


def give_back(client: Any, name: str) -> None:
    """Give a place back.

    Raises:
        KeyError: there is no such pool.
        ValueError: none was taken.
    """
    if not _known(client.eval(_GIVE_BACK, 1, KEY + name), name):
        raise ValueError(f"every place of the resource pool {name!r} is free; one was given back that nobody had taken")


def _known(answer: int, name: str) -> int:
    if answer < 0:
        raise KeyError(name)
    return answer
