"""A token bucket computed from the clock: who asks is told when, and waits until then by himself.

The rule is a value (:class:`Bucket`); the shared limiter applies the same in Lua, with Redis's clock. The bucket is
kept as one number, ``full_at``: when it would be full again if nobody asked any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from graft.tasks.shared import lua
from graft.tasks.shared.lua import CLOCK, IN_USE, KEPT


@dataclass(frozen=True)
class Bucket:
    """Holds at most *per_second* tokens, starts full, and gains one each ``1 / per_second`` seconds."""

    per_second: float

    def __post_init__(self) -> None:
        if isinstance(self.per_second, bool) or not isinstance(self.per_second, int | float):
            raise TypeError(f"per_second={self.per_second!r} must be a number")
        if not 1 <= self.per_second < math.inf:
            raise ValueError(f"per_second={self.per_second!r} must be at least 1, and finite")

    @property
    def period(self) -> float:
        return 1 / self.per_second

    @property
    def slack(self) -> float:
        """How far ``full_at`` may lie ahead while a token is there."""
        return (math.floor(self.per_second) - 1) * self.period

    def book(self, full_at: float, now: float) -> tuple[float, float]:
        """The next token: the new ``full_at``, and when it may be used."""
        return max(full_at, now) + self.period, max(now, full_at - self.slack)


# ARGV: ticket, period, slack. A ticket that has a token booked is told the same time again.
_BOOK: Final = (
    CLOCK
    + f"""
local state, booked = KEYS[1], KEYS[2]
local period = redis.call('HGET', state, 'period')
if period and period ~= ARGV[2] and now < tonumber(redis.call('HGET', state, 'used')) + {IN_USE} then
  return {{'-1', period}}
end
local at = redis.call('ZSCORE', booked, ARGV[1])
if not at then
  local full_at = tonumber(redis.call('HGET', state, 'full_at') or 0)
  at = math.max(now, full_at - tonumber(ARGV[3]))
  full_at = math.max(full_at, now) + tonumber(ARGV[2])
  redis.call('HSET', state, 'period', ARGV[2], 'full_at', string.format('%.6f', full_at), 'used', now)
  redis.call('ZREMRANGEBYSCORE', booked, '-inf', now - {KEPT})
  redis.call('ZADD', booked, string.format('%.6f', at), ARGV[1])
  redis.call('EXPIRE', state, {KEPT})
  redis.call('EXPIRE', booked, {KEPT})
end
return {{string.format('%.6f', math.max(0, at - now)), ''}}
"""
)

# Gives the last token back; one before it is lost, for those behind it have their times already.
_CANCEL: Final = """
local at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not at then return 0 end
local last = redis.call('ZRANGE', KEYS[2], -1, -1)[1]
redis.call('ZREM', KEYS[2], ARGV[1])
if last ~= ARGV[1] then return 0 end
local full_at = tonumber(redis.call('HGET', KEYS[1], 'full_at') or 0)
redis.call('HSET', KEYS[1], 'full_at', string.format('%.6f', full_at - tonumber(ARGV[2])))
return 1
"""

_USED: Final = "return redis.call('ZREM', KEYS[1], ARGV[1])"


@dataclass(frozen=True)
class SharedRateLimiter:
    """One token bucket for all processes that use *name*. Every method blocks for a round trip.

    Another rate than that of a process that used the name within the last minute is a DifferentFiguresError. Redis
    losing its memory fills the bucket.
    """

    name: str
    per_second: float

    def __post_init__(self) -> None:
        Bucket(self.per_second)
        lua.keys("rate", self.name)

    @property
    def keys(self) -> list[str]:
        return lua.keys("rate", self.name, "state", "booked")

    def book(self, ticket: str) -> float:
        """Seconds until *ticket* may go; asked again, what is left of them. First come, first served."""
        bucket = Bucket(self.per_second)
        wait, theirs = lua.run(_BOOK, self.keys, ticket, repr(bucket.period), repr(bucket.slack))
        if theirs:
            rate = f"{1 / float(theirs):g} per second".encode()
            raise lua.refuse_difference("rate limiter", self.name, rate, f"{self.per_second:g} per second")
        return float(wait)

    def used(self, ticket: str) -> None:
        """The token has been used: asked again, *ticket* books another."""
        lua.run(_USED, self.keys[1:], ticket)

    def cancel(self, ticket: str) -> None:
        """*ticket* will not use its token."""
        lua.run(_CANCEL, self.keys, ticket, repr(Bucket(self.per_second).period))
