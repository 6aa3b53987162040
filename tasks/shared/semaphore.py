"""A semaphore that all processes of a deployment share: leased permits, given in the order of asking.

``held`` (ticket -> end of its lease) are the permits, ``slots`` their numbers from 1 to the limit; ``line`` (ticket ->
number) are those who wait, ``seen`` (ticket -> when it is given up) is when each was last heard of. A killed holder's
permit, and a killed waiter's place, expire.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from graft.tasks.shared import lua
from graft.tasks.shared.lua import CLOCK, IN_USE, KEPT

LEASE: Final = 30.0

# After a restart of Redis the holders need a moment to renew what ran out meanwhile: nothing expires until then.
_COMMON: Final = (
    CLOCK
    + f"""
local held, line, seen, slots, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ticket, limit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local grace = lease / 3 + 1
local function uptime()
  return tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
end
local function sweep()
  local lapsed = redis.call('ZRANGEBYSCORE', held, '-inf', now)
  local gone = redis.call('ZRANGEBYSCORE', seen, '-inf', now)
  if (#lapsed == 0 and #gone == 0) or uptime() < grace then return end
  for _, each in ipairs(lapsed) do redis.call('ZREM', held, each) redis.call('HDEL', slots, each) end
  for _, each in ipairs(gone) do redis.call('ZREM', line, each) redis.call('ZREM', seen, each) end
end
local function hold()
  local taken, slot = {{}}, 1
  for _, each in ipairs(redis.call('HVALS', slots)) do taken[tonumber(each)] = true end
  while taken[slot] do slot = slot + 1 end
  redis.call('ZREM', line, ticket)
  redis.call('ZREM', seen, ticket)
  redis.call('ZADD', held, now + lease, ticket)
  redis.call('HSET', slots, ticket, slot)
  return slot
end
local function remember()
  redis.call('HSET', state, 'limit', limit, 'used', now)
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, {KEPT}) end
end
"""
)

# ARGV: ticket, limit, lease, patience, whether this process has used the name before.
_TAKE: Final = (
    _COMMON
    + f"""
sweep()
local set = redis.call('HGET', state, 'limit')
if set and tonumber(set) ~= limit then
  local idle = now - tonumber(redis.call('HGET', state, 'used'))
  if redis.call('ZCARD', held) > 0 or redis.call('ZCARD', line) > 0 or idle < {IN_USE} then return {{-1, set}} end
end
if not set and ARGV[5] == '1' and uptime() < grace then
  redis.call('HSET', state, 'opens', now + grace - uptime())
end
local slot = redis.call('HGET', slots, ticket)
if slot then
  redis.call('ZADD', held, now + lease, ticket)
  return {{tonumber(slot), 0}}
end
if not redis.call('ZSCORE', line, ticket) then
  redis.call('ZADD', line, redis.call('HINCRBY', state, 'number', 1), ticket)
end
redis.call('ZADD', seen, now + tonumber(ARGV[4]), ticket)
local free = limit - redis.call('ZCARD', held)
if now < tonumber(redis.call('HGET', state, 'opens') or 0) then free = 0 end
local rank = redis.call('ZRANK', line, ticket)
slot = 0
if rank < free then slot = hold() end
remember()
return {{slot, rank - free + 1}}
"""
)

# ARGV: ticket, limit, lease. What Redis has lost, or has taken away without giving it to another, is taken back.
_RENEW: Final = (
    _COMMON
    + """
if redis.call('HEXISTS', slots, ticket) == 1 then
  redis.call('ZADD', held, now + lease, ticket)
else
  if redis.call('EXISTS', state) == 0 then redis.call('HSET', state, 'opens', now + grace) end
  if redis.call('ZCARD', held) >= limit then return 0 end
  hold()
end
remember()
return 1
"""
)

_LEAVE: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
return 1
"""

_WITHDRAW: Final = "redis.call('ZREM', KEYS[3], ARGV[1]) return redis.call('ZREM', KEYS[2], ARGV[1])"

_FREE: Final = (
    CLOCK
    + """
return tonumber(ARGV[1]) - redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf')
"""
)

_used: dict[str, float] = {}


@dataclass(frozen=True)
class Answer:
    """``slot`` is the permit's number, from 1 to the limit, or 0; ``ahead`` then counts the permits that others get
    first.
    """

    slot: int
    ahead: int


@dataclass(frozen=True)
class SharedSemaphore:
    """At most *limit* permits of *name* are out at once. Every method blocks for a round trip.

    A permit not renewed for *lease* seconds is taken back. A limit that differs from another process's is a
    DifferentFiguresError for as long as that one uses the name, and a minute longer.
    """

    name: str
    limit: int
    lease: float = LEASE
    kind: str = "semaphore"

    def __post_init__(self) -> None:
        lua.at_least_one("limit", self.limit)
        lua.seconds("lease", self.lease)
        lua.keys(self.kind, self.name)

    @property
    def keys(self) -> list[str]:
        return lua.keys(self.kind, self.name, "held", "line", "seen", "slots", "state")

    def take(self, ticket: str, patience: float) -> Answer:
        """A permit for *ticket* if its turn has come; else it stands in line, until unheard of for *patience* seconds.

        A ticket that holds a permit is given the same one again.
        """
        known = time.monotonic() - _used.get(self.keys[0], -KEPT) < KEPT / 2
        slot, rest = lua.run(_TAKE, self.keys, ticket, self.limit, self.lease, patience, int(known))
        if slot < 0:
            raise lua.refuse_difference(self.kind, self.name, b"limit " + rest, f"limit {self.limit}")
        _used[self.keys[0]] = time.monotonic()
        return Answer(slot, 0 if slot else max(1, rest))

    def renew(self, ticket: str) -> bool:
        """Whether the permit is still this ticket's, for another *lease* seconds."""
        return bool(lua.run(_RENEW, self.keys, ticket, self.limit, self.lease))

    def leave(self, ticket: str) -> None:
        """Give the permit back, or the place in line up."""
        lua.run(_LEAVE, self.keys, ticket)

    def withdraw(self, ticket: str) -> None:
        """Give the place in line up; a permit that the ticket holds by now stays its own."""
        lua.run(_WITHDRAW, self.keys, ticket)

    def available(self) -> int:
        """Permits that nobody holds."""
        return max(0, int(lua.run(_FREE, self.keys, self.limit)))
