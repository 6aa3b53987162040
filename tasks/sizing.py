"""How many items go into the next envelope: a pure decision over what has been measured."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_ITEMS = 8
GROWTH = 8


@dataclass(frozen=True)
class Pace:
    """What is known of a callable: seconds per item, bytes per item, and how many items say so."""

    items: float = 0.0
    seconds: float = 0.0
    size: float = 0.0

    def updated(self, items: int, busy: float, size: int, keep: float = 0.7) -> Pace:
        """The pace after *items* more took *busy* seconds and *size* bytes: recent envelopes count for more."""
        if items < 1:
            return self
        seconds, per_item = busy / items, size / items
        if not self.items:
            return Pace(items, seconds, per_item)
        return Pace(
            self.items + items,
            keep * self.seconds + (1 - keep) * seconds,
            keep * self.size + (1 - keep) * per_item,
        )


@dataclass(frozen=True)
class Sizing:
    """The bounds of one envelope."""

    seconds: float
    max_items: int
    max_bytes: int
    concurrency: int = 1

    def next_size(self, pace: Pace, remaining: int | None, lanes: int) -> int:
        """Items for the next envelope, at least 1.

        Args:
            pace: what has been measured; nothing yet means small envelopes.
            remaining: items not yet sent, None for an input without a known end.
            lanes: envelopes that can run at once.

        An envelope holds about ``seconds`` of work. It never grows more than eightfold on what has been seen, and
        shrinks towards the tail so that all workers finish together.
        """
        floor = self.concurrency
        if not pace.items:
            size = max(FIRST_ITEMS, 2 * floor) if floor > 1 else FIRST_ITEMS
        else:
            by_time = self.concurrency * self.seconds / max(pace.seconds, 1e-7)
            size = int(min(by_time, GROWTH * max(pace.items, FIRST_ITEMS), self.max_items))
        if pace.size:
            size = min(size, int(self.max_bytes / max(pace.size, 1)))
        if remaining is not None:
            size = min(size, max(floor, -(-remaining // (2 * max(lanes, 1)))), max(remaining, 1))
        return max(1, min(size, self.max_items))
