"""Which of several processes handles an event that only the latest of shall be handled.

Every event takes a number under the common name. The process that has the latest one handles it when it is due; an
event whose process dies before that is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graft.config import lua
from graft.tasks.shared.primitive import SharedPrimitive


@dataclass(frozen=True)
class SharedLatest(SharedPrimitive):
    """The latest event under *name*, and at least *interval* seconds between two that are handled."""

    interval: float = 0.0
    kind: str = field(default="debounce", kw_only=True)

    script = lua.load(__file__, "latest_event")
    parts = ("latest", "gate")

    def offer(self) -> int:
        """The number of an event that has just come."""
        return int(self._run("offer"))

    def try_handle(self, number: int) -> float:
        """0 when this event is to be handled now, by the caller; seconds to wait; or -1: a later one came."""
        left_ms = int(self._run("try_handle", number, round(self.interval * 1000)))
        return left_ms / 1000 if left_ms > 0 else float(left_ms)
