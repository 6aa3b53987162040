"""Which of several processes handles an event that only the latest of shall be handled.

Every event takes a number under the common name. The process that has the latest one handles it when it is due; an
event whose process dies before that is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from graft.tasks.shared import lua
from graft.tasks.shared.lua import KEPT

_OFFER: Final = f"""
local number = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], {KEPT})
return number
"""

# ARGV: number, ms until the next one may be handled. 0: handle it; -1: a later one came; else ms to wait.
_CLAIM: Final = """
local left = redis.call('PTTL', KEYS[2])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
if left > 0 then return left end
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[2], '1', 'PX', ARGV[2]) end
return 0
"""


@dataclass(frozen=True)
class SharedLatest:
    """The latest event under *name*, and at least *interval* seconds between two that are handled."""

    name: str
    interval: float = 0.0
    kind: str = "debounce"

    def __post_init__(self) -> None:
        lua.keys(self.kind, self.name)

    @property
    def keys(self) -> list[str]:
        return lua.keys(self.kind, self.name, "latest", "gate")

    def offer(self) -> int:
        """The number of an event that has just come."""
        return int(lua.run(_OFFER, self.keys[:1]))

    def claim(self, number: int) -> float:
        """0 when this event is to be handled now, by the caller; seconds to wait; or -1: it is not the latest."""
        left = int(lua.run(_CLAIM, self.keys, number, round(self.interval * 1000)))
        return left / 1000 if left > 0 else float(left)
