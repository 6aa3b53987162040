"""When a message without a result is searched for, and when it is given up for lost.

sent ── patience ──► searched for ── found ──► searched for again later, ever more rarely
                          └ nowhere ── a moment later nowhere again ──► lost
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

MOMENT: Final = 3.0  # Seconds between the two searches that make a loss certain.
RAREST: Final = 300.0


@dataclass(slots=True)
class _Expected:
    sent_at: float
    search_at: float
    was_missing: bool = False


class LostMessages:
    """The messages whose results are expected; times are those of one monotonic clock."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._expected: dict[str, _Expected] = {}

    def __len__(self) -> int:
        return len(self._expected)

    def add(self, envelope_id: str, now: float, patience: float | None = None) -> None:
        """*envelope_id* has been sent; it is searched for after *patience* seconds, the usual ones by default."""
        self._expected[envelope_id] = _Expected(now, now + (self.patience if patience is None else patience))

    def drop(self, envelope_id: str) -> None:
        """The result of *envelope_id* has come, or nobody waits for it."""
        self._expected.pop(envelope_id, None)

    def due(self, now: float) -> list[str]:
        """The messages to search for now."""
        return [envelope_id for envelope_id, one in tuple(self._expected.items()) if one.search_at <= now]

    def searched(self, searched: Collection[str], missing: Collection[str], now: float) -> list[str]:
        """The messages of *missing* that were missing before too: they are lost, and no longer expected."""
        lost = []
        for envelope_id in searched:
            one = self._expected.get(envelope_id)
            if one is None:
                continue
            if envelope_id not in missing:
                one.was_missing = False
                one.search_at = now + min(max(self.patience, now - one.sent_at), RAREST)
            elif not one.was_missing:
                one.was_missing = True
                one.search_at = now + MOMENT
            else:
                lost.append(envelope_id)
                del self._expected[envelope_id]
        return lost
