"""Pausing queues: a set in Redis that workers obey, later ones too."""

from __future__ import annotations

from typing import Any, Final

from graft.config import keys
from graft.config.queues import table
from graft.config.redis_client import shared
from graft.tasks.queues import existing

PAUSED: Final = keys.PAUSED


def paused(client: Any = None) -> frozenset[str]:
    """The queues that no worker reads for now."""
    return frozenset(name.decode() for name in (client or shared()).smembers(PAUSED))


def is_spared(queue: str) -> bool:
    """Whether *queue* is for checks and upkeep alone, which run also when everything else stands still."""
    return queue == table().maintenance != table().batch


def pause(queue: str) -> None:
    """Have no worker take messages from *queue*; what runs is finished. Workers obey within two seconds."""
    if is_spared(existing.checked(queue)):
        raise ValueError(f"{queue} is not paused: checks and upkeep run there; stop Beat instead")
    shared().sadd(PAUSED, queue)


def resume(queue: str) -> bool:
    """Have workers read *queue* again; whether it was paused."""
    return bool(shared().srem(PAUSED, queue))
