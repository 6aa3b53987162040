"""Where a message is: waiting on a queue, held by a worker, or nowhere.

A living message is always in one of the first two places: it is taken and recorded in one step
(config/transport/channel.py), a retry is sent before its original is acknowledged, and a result is stored before that
too. So an id that has no result and is in neither place is lost: Redis came back without its data, a failover dropped
the last writes, or somebody emptied the queue.

The search runs inside Redis, some hundred messages at a time, and sends no message over the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from graft.config.queues import names
from graft.tasks.messages.message_format import UNACKED, lists

CHUNK: Final = 200
LONGEST_SEARCH: Final = 200_000  # Messages; a longer queue is not lost, only busy.
Place = Literal["queued", "held"]

# kombu writes the properties last, and the task's id among them.
_MATCH: Final = """
local wanted, found = {}, {}
for i = 3, #ARGV do wanted[ARGV[i]] = true end
local function note(raw)
  local id = string.match(string.sub(raw, -2000), '"correlation_id": ?"([^"]*)"')
  if id and wanted[id] then found[#found + 1] = id end
end
"""
_IN_LIST: Final = _MATCH + (
    "local page = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2]) "
    "for _, raw in ipairs(page) do note(raw) end return {#page, found}"
)
_IN_RECORD: Final = _MATCH + (
    "local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2]) "
    "for i = 2, #page[2], 2 do note(page[2][i]) end return {page[1], found}"
)


def missing(ids: Iterable[str], client: Any, queues: Sequence[str] = ()) -> set[str]:
    """Those of *ids* that no queue and no worker has. Nothing when there is too much to search.

    Queues first: a message goes from there to the workers. One that is given back at the wrong moment may be missed,
    so only a second search makes it certain.
    """
    ids = set(ids)
    places = where(ids, client, queues)
    return set() if places is None else ids - places.keys()


def where(ids: Iterable[str], client: Any, queues: Sequence[str] = ()) -> dict[str, Place] | None:
    """Which of *ids* wait on a queue and which a worker holds; None when there is too much to search."""
    left = set(ids)
    places: dict[str, Place] = {}
    keys = [key for queue in {*names(), *queues} for key in lists(queue)]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.llen(key)
        lengths = pipe.execute()
    if sum(lengths) > LONGEST_SEARCH:
        return None

    def note(found: Iterable[bytes], place: Place) -> None:
        for one in {raw.decode() for raw in found} & left:
            places[one] = place
            left.remove(one)

    in_list = client.register_script(_IN_LIST)
    for key, length in zip(keys, lengths, strict=True):
        # From the end that new messages come to: they push the others ahead of the search, never past it.
        start, size = 0, CHUNK if length else 0
        while left and size == CHUNK:
            size, found = in_list(keys=[key], args=[start, start + CHUNK - 1, *left])
            note(found, "queued")
            start += CHUNK
    in_record = client.register_script(_IN_RECORD)
    cursor = b"0"
    while left:
        cursor, found = in_record(keys=[UNACKED], args=[cursor, CHUNK, *left])
        note(found, "held")
        if cursor == b"0":
            break
    return places
