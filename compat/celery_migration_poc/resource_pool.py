"""A resource pool is a hash in Redis, ``resource_pool:<name>``: a number of units that all processes share."""

from __future__ import annotations

from typing import Any, Final

from graft.config import keys, lua

KEY: Final = keys.RESOURCE_POOL

SCRIPT: Final = lua.load(__file__, "resource_pool")


def run(client: Any, operation: str, name: str, *arguments: Any) -> bool:
    """Run an operation of the script on the pool *name*; whether it succeeded.

    Raises:
        KeyError: there is no such pool.
    """
    answer = SCRIPT([KEY + name], [operation, *arguments], client)
    if answer == -1:
        raise KeyError(name)
    return bool(answer)
