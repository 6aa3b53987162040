"""The envelopes of a batch in flight: which items each holds, since when, and how often it was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config.transport.fair_order import Flow
from graft.config.transport.fence import Fence
from graft.config.transport.unique import HeldError, Terms
from graft.tasks.envelope import Child, Outcome

SENT_AT_MOST: Final = 3  # Times that an envelope which got lost is sent in all.


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """One message, ready to be published; ``group`` is the batch that it belongs to.

    ``seconds`` is how long a worker is expected to take.
    """

    id: str
    task: str
    args: tuple[str, ...]
    queue: str
    priority: int
    label: str
    group: str
    index: int
    chord: Mapping[str, Any] | None
    body: bytes | None = None  # What is stored beside the message.
    fence: Fence | None = None  # Of a sender that may send under a lease alone.
    flow: Flow | None = None
    seconds: float = 0.0
    due: float | None = None  # When it may run, in seconds since the epoch.
    unique: Terms | None = None  # Of a call of which there is one at a time,
    on_held: Callable[[HeldError], None] | None = None  # and what to do where another one has its key.


@dataclass(slots=True)
class SentEnvelope:
    """The items of one envelope that has not been answered; without a message where a worker has sent it."""

    positions: Sequence[int]
    size: int = 0
    message: OutgoingMessage | None = None
    seconds: float = 0.0  # How long a worker was expected to take; 0 for one that a worker has sent: part of another.
    times_sent: int = 1
    began: float = field(default_factory=time.monotonic)
    early: set[int] = field(default_factory=set)  # Positions of early outcomes: those that came before the report.

    @property
    def pending(self) -> Sequence[int]:
        """Positions without an outcome."""
        return [position for position in self.positions if position not in self.early] if self.early else self.positions

    def news(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The *outcomes* that did not come early."""
        return [outcome for outcome in outcomes if outcome.index not in self.early]

    def unfinished(self, each: float) -> float:
        """Items that have not run yet, when one ends every *each* seconds."""
        return max(0.0, len(self.positions) - (time.monotonic() - self.began) / max(each, 1e-7))


class InFlight:
    """The envelopes of one batch that were sent and not answered. One thread sends, another receives."""

    def __init__(self) -> None:
        self.size = 0  # Bytes.
        self._lock = threading.Lock()
        self._envelopes: dict[str, SentEnvelope] = {}
        self._lost: list[OutgoingMessage] = []

    def __len__(self) -> int:
        return len(self._envelopes)

    def get(self, envelope_id: str) -> SentEnvelope | None:
        return self._envelopes.get(envelope_id)

    def newest(self) -> SentEnvelope | None:
        """The one that was sent last, unless a worker has sent it."""
        with self._lock:
            found = next(reversed(self._envelopes.values()), None)
            return found if found is not None and found.message is not None else None

    def all(self) -> list[tuple[str, SentEnvelope]]:
        with self._lock:
            return list(self._envelopes.items())

    def sent(self, message: OutgoingMessage, positions: Sequence[int], size: int) -> None:
        """*message* is about to be sent."""
        with self._lock:
            self._envelopes[message.id] = SentEnvelope(positions, size, message, message.seconds)
            self.size += size

    def answered(self, envelope_id: str) -> SentEnvelope | None:
        """The envelope has been answered; None if it had been before."""
        with self._lock:
            found = self._envelopes.pop(envelope_id, None)
            if found is not None:
                self.size -= found.size
            return found

    def add_children(self, children: Iterable[Child]) -> None:
        """Others have sent these: workers, of items of another envelope, or whoever fed a durable batch before."""
        with self._lock:
            self._envelopes.update((envelope_id, SentEnvelope(positions)) for envelope_id, positions in children)

    def lost(self, envelope_id: str) -> bool:
        """Redis has lost the envelope; whether it is sent again. It may have run: that is "at least once"."""
        with self._lock:
            found = self._envelopes.get(envelope_id)
            if found is None or found.message is None or found.times_sent >= SENT_AT_MOST:
                return False
            if found.message.chord is not None:
                return False  # More is lost than this part: how many of the others are done.
            found.times_sent += 1
            self._lost.append(found.message)
            return True

    def take_lost(self) -> list[OutgoingMessage]:
        """The messages to be sent again."""
        with self._lock:
            lost, self._lost = self._lost, []
            return lost

    def expect(self, newest: int, factor: float) -> None:
        """The *newest* of them take *factor* times as long as was expected."""
        with self._lock:
            for envelope in list(self._envelopes.values())[-newest:] if newest else ():
                envelope.seconds *= factor

    def unfinished(self, each: float) -> float:
        """Items of all of them that have not run yet, when each envelope ends one every *each* seconds."""
        with self._lock:
            return sum(envelope.unfinished(each) for envelope in self._envelopes.values())
