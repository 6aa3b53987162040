"""The clocks of the model: Redis's own, which decides, an even one, and those of workers, which may be wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from graft.scripts.model.actors import Scheduler
from graft.scripts.model.wire import CLOCK

EPOCH: Final = 1_700_000_000.0
# Every key's expiry, that much nearer.
AGE: Final = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 then redis.call('PEXPIRE', key, math.max(0, left - ARGV[1] * 1000)) end
end
"""


class Clocks(ABC):
    """The part of the world that knows what time it is for whom."""

    redis: Any
    scheduler: Scheduler

    def __init__(self) -> None:
        self.now = EPOCH
        self.elapsed = 0.0  # On the clocks of machines that go on evenly, whatever Redis's clock does.
        self.wrong_clocks: dict[str, float] = {}  # The skew that each history begins with.
        self.skew: dict[str, float] = {}  # By worker: how far its own clock is ahead.
        self.tick = 0.0  # By how much local clocks go on between two looks at one. With none, histories are alike.
        self._ticks = 0.0
        self._age = self.redis.register_script(AGE)

    @abstractmethod
    def forget_look(self) -> None:
        """Have the next look at a clock told anew."""

    def reset_clocks(self) -> None:
        """Begin anew."""
        self.now, self.elapsed = EPOCH, 1000.0
        self.skew = dict(self.wrong_clocks)
        self._set_clock()

    def local_time(self) -> float:
        """The clock of the machine of whoever asks."""
        actor = self.scheduler.current
        if actor is None:
            return self.now
        return self.now + self._ticked() + self.skew.get(actor.process.name.partition(".")[0], 0.0)

    def _ticked(self) -> float:
        self._ticks += self.tick
        return self._ticks

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, for everybody."""
        self.now += seconds
        self.elapsed += seconds
        self._set_clock()
        self._age(args=[seconds])

    def jump(self, seconds: float) -> None:
        """Redis's clock is set forward; expiries and local clocks do not notice."""
        self.now += seconds
        self._set_clock()

    def _set_clock(self) -> None:
        self.forget_look()
        pipe = self.redis.pipeline()
        pipe.delete(CLOCK).rpush(CLOCK, int(self.now), int(self.now % 1 * 1e6)).execute()
