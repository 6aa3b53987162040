"""Where a message is: waiting on a queue, held by a worker, or nowhere.

A living message is always in one of the first two places: it is taken and recorded in one step
(config/transport/channel.py), a retry is sent before its original is acknowledged, and a result is stored before that
too. So an id that has no result and is in neither place is lost: Redis came back without its data, a failover dropped
the last writes, or somebody emptied the queue.

The search runs inside Redis, some hundred messages at a time, and sends no message over the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from graft.config import lua
from graft.config.transport import due
from graft.tasks.messages.message_format import SEPARATOR, UNACKED, lists
from graft.tasks.queues import existing

CHUNK: Final = 200
LONGEST_SEARCH: Final = 200_000  # Messages; a longer queue is not lost, only busy.
Place = Literal["later", "queued", "held"]  # Later: its time has not come.

SEARCH: Final = lua.load(__file__, "locate")


def missing(ids: Iterable[str], client: Any, queues: Sequence[str] = ()) -> set[str]:
    """Those of *ids* that no queue and no worker has. Nothing when there is too much to search.

    A message whose time has come goes to a queue, and from there to the workers: they are searched in this order. One
    that is given back at the wrong moment may be missed, so only a second search makes it certain.
    """
    ids = set(ids)
    places = where(ids, client, queues)
    return set() if places is None else ids - places.keys()


def where(ids: Iterable[str], client: Any, queues: Sequence[str] = ()) -> dict[str, Place] | None:
    """Which of *ids* wait on a queue and which a worker holds; None when there is too much to search."""
    found = find(ids, client, queues)
    return None if found is None else {name: one.place for name, one in found.items()}


@dataclass(frozen=True)
class Location:
    """Where one message is. ``queue`` and ``step``, its priority on the broker, are known while it waits.

    ``eta`` is when it may run, in seconds since the epoch; None for at once.
    """

    place: Place
    queue: str = ""
    step: int = 0
    eta: float | None = None


def find(ids: Iterable[str], client: Any, queues: Sequence[str] = ()) -> dict[str, Location] | None:
    """Where each of *ids* is that waits, or that a worker holds; None when there is too much to search."""
    places = {name: Location("later", eta=when) for name, when in due.times(list(ids), client).items()}
    left = set(ids) - places.keys()
    keys = [key for queue in {*existing.names(client), *queues} for key in lists(queue)]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
        lengths = pipe.execute()
    if sum(lengths) > LONGEST_SEARCH:
        return None

    def note(found: Iterable[bytes], place: Place, key: str = "") -> None:
        parts = iter(found)
        for raw, eta in zip(parts, parts, strict=True):
            if (one := raw.decode()) in left:
                queue, _, step = key.partition(SEPARATOR)
                places[one] = Location(place, queue, int(step or 0), _moment(eta.decode()))
                left.remove(one)

    for key, length in zip(keys, lengths, strict=True):
        # From the end that new messages come to: they push the others ahead of the search, never past it.
        start, size = 0, CHUNK if length else 0
        while left and size == CHUNK:
            size, found = SEARCH([key], ["in_list", start, CHUNK, *left], client)
            note(found, "queued", key)
            start += CHUNK
    cursor = b"0"
    while left:
        cursor, found = SEARCH([UNACKED], ["in_hash", cursor, CHUNK, *left], client)
        note(found, "held")
        if cursor == b"0":
            break
    return places


def _moment(eta: str) -> float | None:
    with suppress(ValueError):
        return datetime.fromisoformat(eta).timestamp()
    return None
