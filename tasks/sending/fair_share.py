"""How one batch takes part in fair queueing: what its envelopes are expected to take, and what they have taken."""

from __future__ import annotations

from typing import Final

from graft.config.transport.channel import Channel
from graft.config.transport.fair_order import Flow
from graft.tasks.sending.in_flight import InFlight, SentEnvelope
from graft.tasks.sending.sizing import ENVELOPE_COST, Pace, enough_for

MISJUDGED: Final = 1.25


class FairShare:
    """The part of one batch with a *share* of its own, whose envelopes are *in_flight*."""

    def __init__(self, share: float, in_flight: InFlight) -> None:
        self.flow = Flow(share)
        self._in_flight = in_flight
        self._usual_in_flight = 0  # Envelopes that keep the slots busy.
        self._misjudged: float | None = None  # How many times as long as was expected those take that wait.

    def note_slots(self, slots: int) -> None:
        """So many envelopes of the queue can run at once."""
        self._usual_in_flight = max(self._usual_in_flight, enough_for(slots))

    def settle(self, sent: SentEnvelope, elapsed: float) -> None:
        """*sent* has kept a worker for *elapsed* seconds."""
        self.flow.use(ENVELOPE_COST + elapsed - sent.seconds)

    def is_misjudged(self, pace: Pace, concurrency: int) -> bool:
        """Whether many envelopes wait that take another time than was expected, now that *pace* is known.

        Few are not worth it: their place is wrong for a moment only.
        """
        newest = self._in_flight.newest() if self._misjudged is None else None
        if newest is None or len(self._in_flight) <= self._usual_in_flight:
            return False
        factor = pace.envelope_seconds(len(newest.positions), concurrency) / newest.seconds
        if 1 / MISJUDGED < factor < MISJUDGED:
            return False
        self._misjudged = factor
        return True

    def spread(self, channel: Channel, queue: str, priority: int, batch: str) -> None:
        """Put the envelopes of *batch* that wait into the order that they should have, if they were misjudged."""
        if self._misjudged is not None:
            waiting = channel.reorder(queue, priority, batch, self.flow, self._misjudged)
            self._in_flight.expect(waiting, self._misjudged)
            self._misjudged = None
