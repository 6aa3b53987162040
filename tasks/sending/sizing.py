"""How many items the next envelope holds, and how many envelopes are in flight: pure decisions over measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_ITEMS = 8
FIRST_SECONDS = 0.05  # Expected of an envelope before anything is known; a newcomer had better begin soon.
UNKNOWN_ITEMS = 100  # Of a stream that may wait before anything is known of their size.
GROWTH = 8
WAITS = 0.5
PATIENT = 10  # Times as long as others an envelope may take whose items wait: it keeps no process from other work.
SHORTEST = 0.01  # Seconds: a shorter envelope costs its worker a large part of what its items do.
IN_FLIGHT_BYTES = 16 << 20  # Well below the 32 MiB at which Redis drops a subscriber that cannot follow.
TAIL = 1.2  # What is left is divided by so many times the slots, again and again, towards the end.
ENVELOPE_COST = 0.001  # Seconds that an envelope costs its worker beside its items.
ITEM_COST = 1.5e-6  # Seconds that an item costs its worker beside the call itself.


@dataclass(frozen=True)
class Run:
    """The cost of one envelope: the sum of its items' own durations, and the time on the clock, in seconds."""

    items: int
    busy: float
    elapsed: float
    concurrency: int = 1

    @property
    def overlap(self) -> float:
        """The share of the allowed concurrency that was used, from 0 to 1."""
        most = min(self.items, self.concurrency)
        return min(1.0, self.busy / max(self.elapsed, 1e-9) / max(most, 1))


@dataclass(frozen=True)
class Pace:
    """Measurements of a callable: seconds per item, bytes per item, and how many items were measured.

    ``waiting`` is how much of the concurrency that an envelope allowed its items made use of: near 1 for those that
    wait for something else, near 0 for those that compute.
    """

    items: float = 0.0
    seconds: float = 0.0
    size: float = 0.0
    waiting: float = 1.0

    def updated(self, run: Run, size: int, keep: float = 0.7) -> Pace:
        """The pace after one more run, whose items took *size* bytes: recent envelopes count for more."""
        if run.items < 1:
            return self
        seen = Pace(run.items, run.busy / run.items, size / run.items, run.overlap)
        if not self.items:
            return seen
        return Pace(
            self.items + run.items,
            keep * self.seconds + (1 - keep) * seen.seconds,
            keep * self.size + (1 - keep) * seen.size,
            keep * self.waiting + (1 - keep) * seen.waiting,
        )

    def with_sent(self, envelopes: int, size: float) -> Pace:
        """The same, with what is known before reports come: *envelopes* have left, their items took *size* bytes."""
        return Pace(max(self.items, envelopes), self.seconds, max(self.size, size), self.waiting)

    def envelope_seconds(self, items: int, concurrency: int) -> float:
        """Seconds for which an envelope of *items* keeps its worker."""
        if not self.items:
            return ENVELOPE_COST + FIRST_SECONDS
        together = max(1.0, min(items, concurrency) * self.waiting)
        return ENVELOPE_COST + items * self.seconds / together


@dataclass(frozen=True)
class Room:
    """How much of a stream may wait at one place: *items*, fewer where they would take more than *size* bytes."""

    items: int
    size: int

    def taken_by(self, pace: Pace) -> int:
        """Items with this pace that there is room for, at least 1; not many while their size is not known."""
        if not pace.items:
            return min(self.items, UNKNOWN_ITEMS)
        return max(1, min(self.items, int(self.size / max(pace.size, 1.0))))


@dataclass(frozen=True)
class Sizing:
    """The bounds of one envelope."""

    seconds: float
    max_items: int
    max_bytes: int
    concurrency: int = 1

    def next_size(self, pace: Pace, remaining: int | None, slots: int, unfinished: float = 0.0) -> int:
        """Items for the next envelope, at least 1.

        Args:
            pace: what has been measured; nothing yet means small envelopes.
            remaining: items not yet sent, None for an input without a known end.
            slots: envelopes that can run at once.
            unfinished: items that have been sent and not run yet, as far as one can tell.

        An envelope holds about ``seconds`` of work. It never grows more than eightfold on what has been seen, and
        shrinks towards the tail so that all workers finish together, though not to where its own cost outweighs that.

        Items that wait for something else (an HTTP server) are dealt out evenly instead: all slots at once have what
        is left, in as few envelopes as their time allows, because a slot does nothing between two of its envelopes.
        """
        floor = self.concurrency if pace.waiting > WAITS else 1
        shortest = int(SHORTEST / (pace.seconds + ITEM_COST)) if pace.items else 1
        if not pace.items:
            size = floor if floor > 1 else FIRST_ITEMS
        else:
            # Items that wait for something else cost the envelope time together, and are worth filling it with.
            by_time = floor * self.seconds / max(pace.seconds, 1e-7)
            if floor > 1 and remaining is not None:
                by_time = _even((remaining + unfinished) / max(slots, 1), max(PATIENT * by_time, floor))
            by_time = max(by_time, floor)
            size = int(min(by_time, GROWTH * max(pace.items, FIRST_ITEMS), self.max_items))
        if pace.size:
            size = min(size, int(self.max_bytes / max(pace.size, 1)))
        if remaining is not None:
            if floor == 1:
                size = min(size, max(shortest, math.ceil(remaining / (TAIL * max(slots, 1)))))
            size = min(size, max(remaining, 1))
        return max(1, min(size, self.max_items))


def share_of(ready: int, slots: int, pace: Pace) -> int:
    """Items of one envelope, at least 1, where *ready* ones are to be spread over *slots* and more may come.

    The first envelopes hold one item each: the caller has bounded what runs at once, and shall see it run.
    """
    if not pace.items:
        return 1
    return max(1, int(SHORTEST / (pace.seconds + ITEM_COST)), math.ceil(ready / (TAIL * slots)))


def _even(share: float, most: float) -> int:
    """Items of one envelope, when its slot has *share* items to come and *most* of them may go together."""
    return math.ceil(share / max(math.ceil(share / most), 1))


AHEAD = Room(40_000, 16 << 20)  # How far the input of a stream is read before it is sent.
UNREAD = Room(60_000, 64 << 20)  # How far a stream runs ahead of a reader that takes results one by one.


@dataclass(frozen=True, slots=True)
class SendingState:
    """How far the sending of one batch has come, at the moment of a decision.

    ``remaining`` items were not sent, None while the end of the input is not known. ``ahead`` is how far the input is
    read ahead, None where it is not. ``in_flight`` counts envelopes, ``size`` their bytes; ``unfinished`` items of them
    have not run, as far as one can tell. ``unread`` outcomes wait for a reader, or will.
    """

    pace: Pace
    sent: Pace  # The pace, and the sizes of the items that have left.
    remaining: int | None
    ahead: int | None
    in_flight: int
    size: int
    unfinished: float
    unread: int


@dataclass(frozen=True)
class SendingRules:
    """Decide about the envelopes of one batch. ``batch_size`` and ``in_flight`` are the caller's, None: learnt.

    ``is_plain``: a callable that may have returned awaitables returns none. Its envelopes run one item at a time, and
    no more of them are in flight than keep the slots busy.
    """

    sizing: Sizing
    batch_size: int | None = None
    in_flight: int | None = None
    is_plain: bool = False

    @property
    def is_spread(self) -> bool:
        """Whether items in flight count when what remains is spread evenly."""
        return self.in_flight is not None and self.sizing.concurrency > 1

    def may_send(self, state: SendingState, slots: int) -> bool:
        """Whether one more envelope may be in flight, with *slots* of the workers' pools reading the queue."""
        limit = self.in_flight or enough_for(slots)
        if self.is_plain:
            limit = min(limit, enough_for(slots))
        return (
            state.in_flight < limit
            and state.size < IN_FLIGHT_BYTES
            and (state.remaining is not None or state.unread < UNREAD.taken_by(state.sent))
        )

    def next_size(self, state: SendingState, slots: int) -> int:
        """Items of the next envelope, at least 1."""
        if self.batch_size is not None:
            return self.batch_size
        together = (self.in_flight if self.is_spread else None) or slots
        size = self.sizing.next_size(state.pace, state.remaining, together, state.unfinished)
        if state.remaining is not None or state.ahead is None:
            return size
        # While one is filled, those before it run; and what may wait for its reader is enough for all slots.
        return max(1, min(size, state.ahead // 4, UNREAD.taken_by(state.sent) // enough_for(slots)))


def enough_for(slots: int) -> int:
    """Envelopes that keep so many slots busy: one that runs and one that waits for each, and two on their way."""
    return 2 * slots + 2
