"""What of a batch is under way: which envelope holds which items, since when, and how often it was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from graft.tasks.envelope import Given

if TYPE_CHECKING:
    from graft.tasks.sending.batch_sender import Feeder

SENT_AT_MOST: Final = 3  # Times that an envelope which got lost is sent in all.


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message, ready to be published."""

    id: str
    task: str
    args: tuple[str, ...]
    queue: str
    priority: int
    label: str
    group: str
    index: int
    chord: Mapping[str, Any] | None
    feeder: Feeder
    body: bytes | None = None  # What is stored beside the message.


@dataclass(slots=True)
class Flight:
    """The items of one envelope that has not been answered; without a parcel where a worker has sent it."""

    positions: Sequence[int]
    size: int = 0
    parcel: Parcel | None = None
    sent: int = 1
    began: float = field(default_factory=time.monotonic)
    told: set[int] = field(default_factory=set)  # Positions whose outcomes have come before the report.

    @property
    def untold(self) -> Sequence[int]:
        return [position for position in self.positions if position not in self.told] if self.told else self.positions

    def unfinished(self, each: float) -> float:
        """Items that have not run yet, when one ends every *each* seconds."""
        return max(0.0, len(self.positions) - (time.monotonic() - self.began) / max(each, 1e-7))


class Flights:
    """The envelopes of one batch that were sent and not answered. One thread sends, another hears."""

    def __init__(self) -> None:
        self.size = 0  # Bytes.
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}
        self._lost: list[Parcel] = []

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, envelope_id: str) -> Flight | None:
        return self._flights.get(envelope_id)

    def leave(self, parcel: Parcel, positions: Sequence[int], size: int) -> None:
        """*parcel* is about to be sent."""
        with self._lock:
            self._flights[parcel.id] = Flight(positions, size, parcel)
            self.size += size

    def land(self, envelope_id: str) -> Flight | None:
        """It has been answered; None if it had been before."""
        with self._lock:
            flight = self._flights.pop(envelope_id, None)
            if flight is not None:
                self.size -= flight.size
            return flight

    def divide(self, given: Iterable[Given]) -> None:
        """Workers have made these of items of another."""
        with self._lock:
            self._flights.update((envelope_id, Flight(positions)) for envelope_id, positions in given)

    def lose(self, envelope_id: str) -> bool:
        """Redis has lost it; whether it is to be sent again. It may have run: that is "at least once"."""
        with self._lock:
            flight = self._flights.get(envelope_id)
            if flight is None or flight.parcel is None or flight.sent >= SENT_AT_MOST:
                return False
            if flight.parcel.chord is not None:
                return False  # More is lost than this part: how many of the others are done.
            flight.sent += 1
            self._lost.append(flight.parcel)
            return True

    def take_lost(self) -> list[Parcel]:
        """What is to be sent again."""
        with self._lock:
            lost, self._lost = self._lost, []
            return lost

    def unfinished(self, each: float) -> float:
        """Items of all of them that have not run yet, when each envelope ends one every *each* seconds."""
        with self._lock:
            return sum(flight.unfinished(each) for flight in self._flights.values())
