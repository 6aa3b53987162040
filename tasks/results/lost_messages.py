"""When an answer that does not come is asked after, and when its envelope is given up for lost.

sent ── patience ──► searched for ── found ──► waits on, searched for again later, ever more rarely
                          └ nowhere ── a moment later nowhere again ──► lost
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

MOMENT: Final = 3.0  # Seconds between the two searches that make a loss certain.
RAREST: Final = 300.0


@dataclass(slots=True)
class _Case:
    since: float
    due: float
    missed: bool = False


class Overdue:
    """The answers that are due; times are those of one monotonic clock."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._cases: dict[str, _Case] = {}

    def __len__(self) -> int:
        return len(self._cases)

    def add(self, envelope_id: str, now: float) -> None:
        """*envelope_id* has been sent."""
        self._cases[envelope_id] = _Case(now, now + self.patience)

    def drop(self, envelope_id: str) -> None:
        """It was answered, or nobody waits for it."""
        self._cases.pop(envelope_id, None)

    def due(self, now: float) -> list[str]:
        """Those to search for now."""
        return [envelope_id for envelope_id, case in tuple(self._cases.items()) if case.due <= now]

    def searched(self, searched: Collection[str], missing: Collection[str], now: float) -> list[str]:
        """Those of *missing* that were missed before too: they are lost, and no longer watched."""
        lost = []
        for envelope_id in searched:
            case = self._cases.get(envelope_id)
            if case is None:
                continue
            if envelope_id not in missing:
                case.missed = False
                case.due = now + min(max(self.patience, now - case.since), RAREST)
            elif not case.missed:
                case.missed = True
                case.due = now + MOMENT
            else:
                lost.append(envelope_id)
                del self._cases[envelope_id]
        return lost
