"""How a message is taken from Redis: a script, and what is remembered until it answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

# Takes the oldest message of the most urgent list and records it in the same instant: no crash comes in between. A
# script that has begun to write is not stopped by maxmemory, so it is never half done (Redis 6.2 and 7). The first list
# with a message is found by halving: of ten priorities of seven queues most lists are empty.
# Also says whether there is more: who has taken the last one can wait for a sign, and need not look in vain.
# KEYS: the record, its index, a list of signs for each queue, then the lists: for each priority one of each queue.
# ARGV: number of queues, their names as JSON, time, whether a sign was taken already, and a delivery tag for each
# message that may be taken.
TAKE: Final = """
local count, taken = tonumber(ARGV[1]), {}
local most, signs = #ARGV - count - 3, tonumber(ARGV[3 + count])
local function first(low)
  local high = #KEYS
  if redis.call('EXISTS', unpack(KEYS, low)) == 0 then return high + 1 end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if redis.call('EXISTS', unpack(KEYS, low, middle)) > 0 then high = middle else low = middle + 1 end
  end
  return low
end
local i = first(count + 3)
while i <= #KEYS do
  while #taken < most do
    local raw = redis.call('RPOP', KEYS[i])
    if not raw then break end
    local queue, tag = (i - count - 3) % count + 1, ARGV[4 + count + #taken]
    redis.call('HSET', KEYS[1], tag, '[' .. raw .. ',"",' .. ARGV[1 + queue] .. ']')
    redis.call('ZADD', KEYS[2], ARGV[2 + count], tag)
    if signs == 0 then redis.call('RPOP', KEYS[2 + queue]) end
    signs = 0
    taken[#taken + 1] = {queue, raw}
  end
  if #taken == most then return {redis.call('EXISTS', unpack(KEYS, i)), taken} end
  if i == #KEYS then return {0, taken} end
  i = first(i + 1)
end
for queue = 1, count do redis.call('DEL', KEYS[2 + queue]) end
return {0, taken}
"""


class Look:
    """The command that looks at *queues* for messages, whose lists and records are *keys*.

    All but its last arguments stay the same, and they are many: packed anew each time they took as long as taking.
    """

    def __init__(self, keys: Sequence[str], queues: Sequence[str]) -> None:
        names = [json.dumps(queue) for queue in queues]
        first = ["EVAL", TAKE, len(keys), *keys, len(queues), *names]
        self._count = len(first)
        self._first = b"".join(map(_packed, first))

    def packed(self, *last: object) -> bytes:
        """The command as it travels; *last* are the arguments that differ: time, signs, tags."""
        return b"*%d\r\n%b%b" % (self._count + len(last), self._first, b"".join(map(_packed, last)))


def _packed(argument: object) -> bytes:
    content = str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(content), content)


class Asked(NamedTuple):
    """A look for messages that has not been answered: the tags that they would have, and where they may be from.

    ``settled`` are messages of earlier looks, of which Redis was told on the way.
    """

    tags: tuple[str, ...]
    queues: tuple[str, ...]
    settled: tuple[str, ...]
