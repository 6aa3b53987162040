"""The queues that exist: declared by this app, or at some time by anybody who sends to this Redis or reads from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

from graft.config import keys, redis_clock
from graft.config.queues import table
from graft.config.redis_client import broker
from graft.tasks.messages.message_format import SEPARATOR, lists

GROUP: Final = 50  # Queues that are asked at once whether any has a message.
FORGOTTEN_AFTER: Final = 30 * 86400.0  # Seconds after which a queue that nobody declares any more is not listed.


def names(client: Any = None) -> list[str]:
    """Every queue that exists, those of this app first; *client* is one of the broker's Redis."""
    with broker() if client is None else nullcontext(client) as connected:
        seen = connected.zrangebyscore(keys.QUEUES, redis_clock.now() - FORGOTTEN_AFTER, "+inf")
    return list(dict.fromkeys([*table().names, *sorted(name.decode() for name in seen)]))


def filled(queues: Sequence[str], client: Any) -> list[str]:
    """Those of *queues* in which messages wait. Of thousands most are empty: groups of them are asked at once."""
    groups = [queues[at : at + GROUP] for at in range(0, len(queues), GROUP)]
    if len(groups) > 1:
        groups = _existing(groups, client)
    return [queue for (queue,) in _existing([[queue] for group in groups for queue in group], client)]


def _existing(groups: Sequence[Sequence[str]], client: Any) -> list[Sequence[str]]:
    """Those groups of queues of which at least one has a list."""
    with client.pipeline(transaction=False) as pipe:
        for group in groups:
            pipe.exists(*(key for queue in group for key in lists(queue)))
        return [group for group, count in zip(groups, pipe.execute(), strict=True) if count]


def lengths(queues: Sequence[str], client: Any) -> dict[str, int]:
    """The lists of *queues* on which messages wait, the most urgent of each first, with how many do."""
    found = [key for queue in queues for key in lists(queue)]
    with client.pipeline(transaction=False) as pipe:
        for key in found:
            pipe.llen(key)
        return {key: int(length) for key, length in zip(found, pipe.execute(), strict=True) if length}


def heads(queues: Sequence[str], client: Any) -> dict[str, dict[str, tuple[int, bytes]]]:
    """Of each of *queues* in which messages wait the lists, with their lengths and the messages taken next."""
    waiting = lengths(filled(queues, client), client)
    with client.pipeline(transaction=False) as pipe:
        for key in waiting:
            pipe.lindex(key, -1)
        replies = pipe.execute()
    found: dict[str, dict[str, tuple[int, bytes]]] = {}
    for (key, length), head in zip(waiting.items(), replies, strict=True):
        if head is not None:  # Else it was taken meanwhile.
            found.setdefault(key.partition(SEPARATOR)[0], {})[key] = (length, head)
    return found


def checked(queue: str, client: Any = None) -> str:
    """*queue*, if it exists.

    Raises:
        ValueError: nobody has declared it.
    """
    if queue not in (known := names(client)):
        raise ValueError(f"there is no queue {queue!r}; there are {', '.join(known)}")
    return queue
