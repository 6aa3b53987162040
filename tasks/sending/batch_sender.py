"""Cuts one batch into envelopes, as many at a time as may be in flight, and takes their answers in.

``cut`` runs on the publisher's thread, ``answered`` on the subscriber's; the lock between them is held for moments.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config.deployment import app, settings
from graft.tasks import codec
from graft.tasks.batch import Batch
from graft.tasks.callables import function_store
from graft.tasks.callables.references import FunctionRef
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import RUN_ENVELOPE, Envelope, Given, Outcome, WireFunction
from graft.tasks.errors import CancelledBatchError, EnvelopeLostError, TaskQueueError
from graft.tasks.ids import new_id
from graft.tasks.messages import payloads
from graft.tasks.monitoring import function_stats
from graft.tasks.monitoring.worker_registry import slots
from graft.tasks.policy import ONCE, RetryPolicy
from graft.tasks.results.partial import PART, told
from graft.tasks.results.result_store import open_report
from graft.tasks.results.subscriber import failure_of
from graft.tasks.sending.in_flight import Flight, Flights, Parcel
from graft.tasks.sending.sizing import Pace, Room, Run, Sizing
from graft.tasks.sending.sources import Source

logger = logging.getLogger(__name__)

FLIGHT_BYTES: Final = 16 << 20  # Well below the 32 MiB at which Redis drops a subscriber that cannot follow.
AHEAD: Final = Room(40_000, 16 << 20)  # How far the input of a stream is read before it is sent.
UNREAD: Final = Room(60_000, 64 << 20)  # How far a stream runs ahead of a reader that takes results one by one.


@dataclass(frozen=True, slots=True)
class Order:
    """What the caller asked for.

    ``in_flight`` counts envelopes, None leaves it to the number of workers. ``widened`` replaces it once a plain
    callable has shown that it returns no awaitables: its envelopes run one item at a time then, so as many of them may
    be in flight as there may be items.
    """

    function: FunctionRef
    queue: str
    priority: int
    batch_size: int | None = None
    in_flight: int | None = None
    widened: int | None = None
    concurrency: int = 1
    timeout: float | None = None
    policy: RetryPolicy = ONCE
    unpack: bool = False


class Feeder:
    """The sending side of one batch."""

    def __init__(self, batch: Batch, source: Source, order: Order, wake: Callable[[Feeder], None]) -> None:
        self.batch = batch
        self.source = source
        self.order = order
        self.sent_ids: list[str] = []
        self.sizing = Sizing(
            settings().envelope_seconds, settings().envelope_items, settings().envelope_limit, order.concurrency
        )
        self._wake = wake
        self._flights = Flights()
        self._next = 0
        self._envelopes = 0
        self._each = 0.0  # Bytes that an item took in the envelope cut last.
        self._backlog: deque[tuple[int, Any]] = deque()  # Taken from the source, and not sent yet.
        self._function: WireFunction | None = None
        self._pace = Pace()
        self._cancelling = False
        self._finished = False
        self._wide = False
        self._is_warned = False

    # ---- on the publisher's thread ----------------------------------------------------------------------------------

    def cut(self, client: Any) -> list[Parcel]:
        """The envelopes that may leave now. Blocks for a round trip the first time (function, pace)."""
        self._offer_function(client)
        if self.source.ahead is not None and self._envelopes:
            self.source.ahead = max(AHEAD.taken_by(self._seen), 2 * (self.order.batch_size or 0))
        lanes = 1
        if not self._is_drained() and (self.order.in_flight is None or self._has_room()):
            lanes = self._lanes(client)
        parcels: list[Parcel] = []
        while self._has_room(lanes) and not self._is_drained():
            size = self._next_size(lanes)
            if self.source.ready < size and not self.source.eager and self._flights:
                break  # A stream that trickles: what is in flight will wake us, and more will have come.
            envelope = self._fill(size)
            if envelope is not None:
                parcels.append(self._parcel(envelope))
        self._note_end()
        return parcels

    def _offer_function(self, client: Any) -> None:
        """Have the callable where workers find it, and its pace known."""
        if self._function is None:
            self._function = function_store.store(self.order.function)
            self._pace = function_stats.load_pace(self.pace_key, client)
        elif not function_store.is_stored(self._function):
            function_store.store(self.order.function)

    def cut_again(self, client: Any) -> list[Parcel]:
        """The envelopes that got lost, to be sent once more under their own ids."""
        lost = self._flights.take_lost()
        if lost:
            function_store.forget_stored()
            self._offer_function(client)
            # A worker that missed the callable has answered under the same ids.
            client.delete(*(app().backend.get_key_for_task(parcel.id) for parcel in lost))
        return lost

    def _lanes(self, client: Any) -> int:
        found = slots(self.order.queue, client)
        if not found and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "no live worker reads the queue %s: items wait until one does (celery -A graft worker -Q %s)",
                self.order.queue,
                self.order.queue,
            )
        return max(found, 1)

    def _parcel(self, envelope: Envelope) -> Parcel:
        sealed = envelope.sealed()
        argument = payloads.argument(sealed)
        self.batch.note_sent(len(envelope.items))
        if self.source.remaining is not None:  # A stream may be endless, and has no record as a group.
            self.sent_ids.append(envelope.id)
        self._envelopes += 1
        self._each = len(sealed) / len(envelope.items)
        parcel = Parcel(
            envelope.id,
            RUN_ENVELOPE,
            (argument,),
            self.order.queue,
            self.order.priority,
            f"{envelope.function.name}, {len(envelope.items)} items from {envelope.positions[0]}",
            self.batch.id,
            self._envelopes - 1,
            self.chord,
            self,
            sealed if argument == payloads.BESIDE else None,
        )
        self._flights.leave(parcel, envelope.positions, len(sealed))
        return parcel

    @property
    def chord(self) -> Mapping[str, Any] | None:
        """The chord that the envelopes are parts of, if any."""
        return None

    @property
    def pace_key(self) -> str:
        ref = self.order.function
        return ref.name if ref.how == "import" else f"{ref.name}:{len(ref.payload)}"

    @property
    def _seen(self) -> Pace:
        """The pace, heeding at once how large the items of this batch are that have left."""
        items = max(self._pace.items, self._envelopes)
        return Pace(items, self._pace.seconds, max(self._pace.size, self._each), self._pace.waiting)

    def _next_size(self, lanes: int) -> int:
        if self.order.batch_size is not None:
            return self.order.batch_size
        together = lanes if self._wide or self.order.concurrency == 1 else self.order.in_flight
        remaining = self.source.remaining
        if remaining is None:
            size = self.sizing.next_size(self._pace, None, together or lanes)
            if self.source.ahead is None:
                return size
            # While one is filled, those before it run; and what may wait for its reader is enough for all lanes.
            return max(1, min(size, self.source.ahead // 4, UNREAD.taken_by(self._seen) // _fill_of(lanes)))
        unfinished = 0.0
        if self.order.in_flight and self.order.concurrency > 1:
            each = self._pace.seconds / self.order.concurrency
            unfinished = self._flights.unfinished(each)
        return self.sizing.next_size(self._pace, remaining + len(self._backlog), together or lanes, unfinished)

    def _has_room(self, lanes: int = 1) -> bool:
        limit = self.order.in_flight or _fill_of(lanes)
        if self._wide and self.order.widened:
            limit = min(self.order.widened, _fill_of(lanes))
        return (
            len(self._flights) < limit
            and self._flights.size < FLIGHT_BYTES
            and (self.source.remaining is not None or self.batch.unread < UNREAD.taken_by(self._seen))
        )

    def _is_drained(self) -> bool:
        return not self._backlog and not self.source.ready

    def _fill(self, size: int) -> Envelope | None:
        """An envelope of *size* items at most, fewer where bytes run out; None when none of them could travel."""
        if not self._backlog:
            items = self.source.take(size)
            positions = range(self._next, self._next + len(items))
            self._next += len(items)
            plain = None if self.source.encoded else codec.plain_size(items)
            if plain is not None and plain <= settings().item_limit:
                return self._envelope(positions, items, packed=False)
            self._backlog.extend(zip(positions, items, strict=True))
        return self._pack(size)

    def _pack(self, size: int) -> Envelope | None:
        """The same from the backlog, each item as a pickle of its own, made when its place is certain."""
        positions: list[int] = []
        frames: list[bytes] = []
        bad: list[Outcome] = []
        room, limit, is_encoded = settings().envelope_limit, settings().item_limit, self.source.encoded
        while self._backlog and len(frames) < size:
            position, item = self._backlog[0]
            try:
                frame = item if is_encoded else codec.dump_item(item, limit, "item", position)
            except TaskQueueError as error:
                self._backlog.popleft()
                bad.append(Outcome(position, error=error))
                continue
            if frames and len(frame) > room:
                break
            self._backlog.popleft()
            if self.batch.begin(position):
                positions.append(position)
                frames.append(frame)
                room -= len(frame)
        if bad:
            self.batch.note_sent(len(bad), envelopes=0)
            self.refused(bad)
        return self._envelope(positions, frames, packed=True) if frames else None

    def refused(self, bad: list[Outcome]) -> None:
        """Items that cannot travel have their outcome at once."""
        self.batch.note_outcomes(bad)

    def _envelope(self, positions: Sequence[int], items: Sequence[Any], *, packed: bool) -> Envelope:
        assert self._function is not None
        order = self.order
        return Envelope(
            new_id(), self.batch.id, self._function, positions, items, packed, order.unpack,
            1 if self._wide else order.concurrency, order.timeout, order.policy, claim=self.chord is not None,
            shared=order.in_flight is None and order.batch_size is None and self.chord is None,
        )  # fmt: skip

    def _note_end(self) -> None:
        if self.source.is_empty and self._is_drained() and not self._finished:
            self._finished = True
            if self.source.error is not None:
                self.batch.fail(self.source.error)
            self.batch.note_total(self._next)

    @property
    def unsent(self) -> int:
        """Items that are known of and have not been sent."""
        return 0 if self._finished else self.source.ready + len(self._backlog)

    @property
    def is_finished(self) -> bool:
        """Whether everything has been sent."""
        return self._finished

    def remember_pace(self, client: Any) -> None:
        function_stats.save_pace(self.pace_key, self._pace, client)

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def answered(self, envelope_id: str, answer: Mapping[str, Any] | BaseException, client: Any) -> Sequence[str]:
        """Take in the answer to one envelope; the ids of those that were made of it, and answer for its other items."""
        if not isinstance(answer, BaseException) and answer["status"] == PART:
            self._take_part(envelope_id, answer)
            return ()
        failed = None if isinstance(answer, BaseException) or answer["status"] == "SUCCESS" else failure_of(answer)
        error = answer if isinstance(answer, EnvelopeLostError) else failed
        if isinstance(error, EnvelopeLostError) and self._flights.lose(envelope_id):
            logger.warning("envelope %s got lost in Redis and is sent again", envelope_id)
            self._wake(self)
            return ()
        flight = self._flights.land(envelope_id)
        if flight is None:
            return ()
        given: Sequence[Given] = ()
        if error is not None:
            self.lost(flight.untold, error)
        elif isinstance(answer, BaseException):
            self.batch.fail(answer)
        else:
            given = self._take_report(envelope_id, str(answer["result"]), flight, client)
        if given:
            self._flights.divide(given)
        if not self._finished:
            self._wake(self)
        return [part for part, _ in given]

    def _take_part(self, envelope_id: str, answer: Mapping[str, Any]) -> None:
        """Outcomes of an envelope that still runs."""
        flight = self._flights.get(envelope_id)
        if flight is None:
            return
        try:
            outcomes = [outcome for outcome in told(answer, envelope_id) if outcome.index not in flight.told]
        except Exception as error:  # The report will have them.
            logger.warning("dropped early outcomes of envelope %s: %r", envelope_id, error)
            return
        flight.told.update(outcome.index for outcome in outcomes)
        self.batch.note_outcomes(outcomes)

    def _take_report(self, envelope_id: str, text: str, flight: Flight, client: Any) -> Sequence[Given]:
        try:
            report = open_report(text, envelope_id, client)
        except Exception as error:
            self.lost(flight.untold, error)
            return ()
        self._wide = self.order.widened is not None and not report.awaited
        share = len(report.positions) / len(flight.positions)
        size = max(int(flight.size * share), report.size)
        self.learn(len(report.positions), report.busy, report.elapsed, size)
        if report.packed or flight.told:
            outcomes = [outcome for outcome in report.outcomes() if outcome.index not in flight.told]
            self.batch.note_outcomes(outcomes, report.retries)
        else:
            self.batch.note_values(report.positions, report.values, report.retries)
        return report.given

    def learn(self, items: int, busy: float, elapsed: float, size: int) -> None:
        run = Run(items, busy, elapsed, self.order.concurrency)
        self._pace = self._pace.updated(run, size)

    def lost(self, positions: Sequence[int], error: BaseException) -> None:
        """An envelope failed as a whole: every item in it has this error."""
        self.batch.note_outcomes([Outcome(position, error=error) for position in positions])

    # ---- on the caller's thread -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop sending, and flag what has not begun. Returns at once; the publisher's thread carries it out."""
        self._cancelling = True
        self._wake(self)

    def settle_cancel(self) -> None:
        """On the publisher's thread: carry out a cancellation that was asked for."""
        if not self._cancelling:
            return
        self._cancelling = False
        cancellation.cancel(self.batch.id, settings().result_ttl)
        if not self._finished:
            self._finished = True
            total = self._next + (self.source.remaining or 0)
            unsent = [*(position for position, _ in self._backlog), *range(self._next, total)]
            self._backlog.clear()
            self.source.close()
            self.batch.note_total(total)
            self.lost(unsent, CancelledBatchError("cancelled before it was sent"))


def _fill_of(lanes: int) -> int:
    """Envelopes that keep so many lanes busy: one that runs and one that waits for each, and two on their way."""
    return 2 * lanes + 2
