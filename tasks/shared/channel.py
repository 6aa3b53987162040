"""A bounded channel between processes: a list in Redis, and leases that say who is there on both sides.

The receiver hears the end once every sender has closed, or died, and the list is empty; a sender hears that nobody
listens once every receiver has gone. A value that was received by a process that then died is lost, as it would be
inside one process.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, Final, Literal

from graft.config.deployment import settings
from graft.tasks import codec
from graft.tasks.shared import lua
from graft.tasks.shared.lua import CLOCK, KEPT

LEASE: Final = 30.0
Side = Literal["sender", "receiver"]

# ARGV: id, lease, capacity.
_COMMON: Final = (
    CLOCK
    + f"""
local items, senders, receivers, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function alive(side)
  redis.call('ZREMRANGEBYSCORE', side, '-inf', now)
  return redis.call('ZCARD', side)
end
local function enter(side, flag)
  redis.call('HSET', state, flag, 1)
  redis.call('ZADD', side, now + tonumber(ARGV[2]), ARGV[1])
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, {KEPT}) end
end
"""
)

_ENTER_SENDER: Final = """
if not redis.call('ZSCORE', senders, ARGV[1]) and alive(senders) == 0 and alive(receivers) == 0 then
  redis.call('HDEL', state, 'sent', 'received', 'capacity')
end
local set = redis.call('HGET', state, 'capacity')
if set and set ~= ARGV[3] then return {-2, set} end
redis.call('HSET', state, 'capacity', ARGV[3])
enter(senders, 'sent')
"""

# ARGV[4]: the sealed value. 1: sent; 0: full; -1: nobody listens.
_SEND: Final = (
    _COMMON
    + _ENTER_SENDER
    + """
if redis.call('HEXISTS', state, 'received') == 1 and alive(receivers) == 0 then return {-1, ''} end
if redis.call('LLEN', items) >= tonumber(ARGV[3]) then return {0, ''} end
redis.call('RPUSH', items, ARGV[4])
return {1, ''}
"""
)

# 1: a value; 0: none yet; -1: the end.
_RECEIVE: Final = (
    _COMMON
    + """
enter(receivers, 'received')
local value = redis.call('LPOP', items)
if value then return {1, value} end
if redis.call('HEXISTS', state, 'sent') == 1 and alive(senders) == 0 then return {-1, ''} end
return {0, ''}
"""
)

# ARGV[4]: which side.
_RENEW: Final = (
    _COMMON
    + """
if ARGV[4] == 'sender' then enter(senders, 'sent') else enter(receivers, 'received') end
return 1
"""
)

_CLOSE: Final = (
    _COMMON
    + """
if ARGV[4] == 'sender' then
  enter(senders, 'sent')
  redis.call('ZREM', senders, ARGV[1])
else
  redis.call('ZREM', receivers, ARGV[1])
end
local is_read = redis.call('HEXISTS', state, 'received') == 1 and alive(receivers) == 0
if is_read and alive(senders) == 0 then redis.call('DEL', items, state) end
return 1
"""
)


class SharedClosed(Exception):
    """Nobody is left on the other side."""


@dataclass(frozen=True)
class SharedChannel:
    """The channel *name*, for at most *capacity* values. Every method blocks for a round trip."""

    name: str
    capacity: int
    lease: float = LEASE

    def __post_init__(self) -> None:
        lua.at_least_one("capacity", self.capacity)
        lua.keys("channel", self.name)

    @property
    def keys(self) -> list[str]:
        return lua.keys("channel", self.name, "items", "senders", "receivers", "state")

    def seal(self, value: Any) -> str:
        """*value* as it travels.

        Raises:
            UnpicklableError, PayloadTooLargeError: it cannot.
        """
        return codec.seal(self._purpose, codec.dump_item(value, settings().item_limit, "the value to send"))

    def send(self, sender: str, sealed: str) -> bool:
        """Whether there was room for it.

        Raises:
            SharedClosed: every receiver has gone.
            DifferentFiguresError: the channel is in use with another capacity.
        """
        sent, theirs = self._run(_SEND, sender, sealed)
        if sent == -1:
            raise SharedClosed
        if sent == -2:
            mine = f"capacity {self.capacity}"
            raise lua.refuse_difference("channel", self.name, b"capacity " + theirs, mine)
        return bool(sent)

    def receive(self, receiver: str) -> list[Any]:
        """The next value in a list of one; [] when there is none yet.

        Raises:
            SharedClosed: every sender has closed, and nothing is left.
        """
        received, text = self._run(_RECEIVE, receiver, "")
        if received == -1:
            raise SharedClosed
        return [pickle.loads(codec.unseal(self._purpose, text.decode()))] if received else []

    def renew(self, side: Side, holder: str) -> bool:
        """This sender or receiver is still there."""
        return bool(self._run(_RENEW, holder, side))

    def close(self, side: Side, holder: str) -> None:
        """This sender or receiver has gone."""
        self._run(_CLOSE, holder, side)

    def room(self) -> int:
        """How many values fit in now."""
        return max(0, self.capacity - int(lua.run("return redis.call('LLEN', KEYS[1])", self.keys[:1])))

    @property
    def _purpose(self) -> str:
        return f"channel:{self.name}"

    def _run(self, script: str, holder: str, last: str) -> Any:
        return lua.run(script, self.keys, holder, self.lease, self.capacity, last)
