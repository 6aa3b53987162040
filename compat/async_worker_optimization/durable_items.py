"""Items that wait for their answer, kept in Redis so that a process that comes after this one finds them.

One hash by name: ``<owner>|<number>`` -> the sealed item. The number orders items over all processes of that name.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from graft.compat.async_worker_optimization import redis_records
from graft.config.deployment import settings
from graft.tasks import codec

PURPOSE: Final = "compat-batch-item"

PUT: Final = """
local number = redis.call('INCR', KEYS[2])
local field = ARGV[1] .. '|' .. string.format('%016d', number)
redis.call('HSET', KEYS[1], field, ARGV[2])
return field
"""

# Whoever asks first gets an item: it belongs to its new owner before anybody else can look.
TAKE_OVER: Final = """
local taken = {}
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
  local owner, number = string.match(all[place], '^(.*)|(%d+)$')
  if owner ~= ARGV[1] then
    local field = ARGV[1] .. '|' .. number
    redis.call('HDEL', KEYS[1], all[place])
    redis.call('HSET', KEYS[1], field, all[place + 1])
    taken[#taken + 1] = field
    taken[#taken + 1] = all[place + 1]
  end
end
return taken
"""


class Backlog:
    """The unanswered items of one processor. Every method blocks for a round trip."""

    def __init__(self, name: str) -> None:
        self.key = f"{redis_records.PREFIX}batch:{name}"
        self.owner = uuid4().hex

    def put(self, item: Any) -> str:
        """Keep *item*; the field it is kept under.

        Raises:
            UnpicklableError, PayloadTooLargeError: it cannot be kept.
            BrokerUnavailable: Redis does not answer.
        """
        sealed = codec.seal(PURPOSE, codec.dump_item(item, settings().item_limit, "an item kept until answered"))
        with redis_records.redis_or_error() as client:
            field: bytes = client.eval(PUT, 2, self.key, f"{self.key}:number", self.owner, sealed)
        return field.decode()

    def drop(self, fields: Sequence[str]) -> None:
        """Forget items that were answered."""
        with redis_records.redis_or_error() as client:
            client.hdel(self.key, *fields)

    def take_over(self) -> list[tuple[str, Any]]:
        """The items of all other owners, now this one's, in the order in which they were put."""
        with redis_records.redis_or_error() as client:
            taken = client.eval(TAKE_OVER, 1, self.key, self.owner)
        fields = (field.decode() for field in taken[::2])
        items = (pickle.loads(codec.unseal(PURPOSE, sealed.decode())) for sealed in taken[1::2])
        return sorted(zip(fields, items, strict=True), key=lambda entry: entry[0])
