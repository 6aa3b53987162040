"""A batch with a reduce step: its envelopes are the header of a Celery chord, the reducer its body.

A chord must know its number of parts before the first one is done, so all envelopes are cut before any is sent. The
values stay in Redis and go from the workers straight to the reducer; the caller hears counts, and the one answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graft.config.deployment import app
from graft.config.redis_client import broker, shared
from graft.tasks.batch import Batch
from graft.tasks.callables import function_store
from graft.tasks.callables.references import FunctionRef
from graft.tasks.cleanup import chord_recovery
from graft.tasks.delivery import chord_records
from graft.tasks.envelope import Envelope, Given, Outcome
from graft.tasks.errors import CancelledBatchError, EnvelopeLostError
from graft.tasks.ids import new_id
from graft.tasks.monitoring import function_stats
from graft.tasks.results.result_store import OUTCOME, Claim, open_report
from graft.tasks.results.subscriber import failure_of, inbox
from graft.tasks.running.envelope_task import reduce_batch
from graft.tasks.sending.batch_sender import Feeder, Order
from graft.tasks.sending.in_flight import Flight, Parcel
from graft.tasks.sending.sources import ListSource


class ReducingFeeder(Feeder):
    """The sending side of a batch whose values are reduced to one on a worker."""

    def __init__(
        self, batch: Batch, source: ListSource, order: Order, wake: Callable[[Feeder], None], reducer: FunctionRef
    ) -> None:
        super().__init__(batch, source, order, wake)
        self._reducer = reducer
        self._cuts: deque[Envelope] | None = None
        self._chord: Mapping[str, Any] | None = None
        self._body_id = new_id()
        self._refused: BaseException | None = None
        self._looks = 0

    @property
    def chord(self) -> Mapping[str, Any] | None:
        return self._chord or {}

    def cut(self, client: Any) -> list[Parcel]:
        if self._cuts is None:
            self._cuts = self._cut_everything(client)
        parcels = []
        lanes = self._lanes(client)
        while self._cuts and self._has_room(lanes):
            parcels.append(self._parcel(self._cuts.popleft()))
        self._note_end()
        return parcels

    def _is_drained(self) -> bool:
        return not self._cuts and super()._is_drained()

    def _cut_everything(self, client: Any) -> deque[Envelope]:
        self._function = function_store.store(self.order.function)
        self._pace = function_stats.load_pace(self.pace_key, client)
        lanes = self._lanes(client)
        total = self.source.remaining or 0
        # Nothing can be cut smaller later on: eight envelopes a slot keep the slots evenly loaded to the end.
        even = -(-total // (8 * lanes))
        size = self.order.batch_size or max(1, min(self._next_size(lanes), even) if self._pace.items else even)
        cuts: deque[Envelope] = deque()
        while not super()._is_drained():
            envelope = self._fill(size)
            if envelope is not None:
                cuts.append(envelope)
        if self._refused is not None:
            self.batch.note_answer(Outcome(0, error=self._refused))
            return deque()
        self._open_chord(total, cuts)
        return cuts

    def _open_chord(self, total: int, cuts: Sequence[Envelope]) -> None:
        reducer = function_store.store(self._reducer)
        body = Envelope(self._body_id, self.batch.id, reducer, range(total), [], False)
        signature = reduce_batch.s(body.seal()).set(
            task_id=self._body_id, queue=self.order.queue, priority=self.order.priority
        )
        self._chord = dict(signature)
        inbox().expect(self._body_id, self._reduced, is_sent=False)
        app().backend.set_chord_size(self.batch.id, len(cuts))
        chord_records.note(
            self.batch.id, self._chord, {index: envelope.id for index, envelope in enumerate(cuts)}, is_watched=True
        )

    def refused(self, bad: list[Outcome]) -> None:
        self._refused = self._refused or bad[0].error

    def settle_cancel(self) -> None:
        is_cut_short = self._cancelling and not self.is_finished
        super().settle_cancel()
        if is_cut_short:  # The chord lacks the parts that were not sent, and nobody will send its body.
            self._cuts = deque()
            chord_records.forget(self.batch.id)
            self.batch.note_answer(Outcome(0, error=CancelledBatchError("cancelled before all of it was sent")))
            inbox().forget(self._body_id)

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def _take_report(self, envelope_id: str, text: str, flight: Flight, client: Any) -> Sequence[Given]:
        claim = Claim.parse(text)
        self.learn(len(flight.positions), claim.busy, claim.elapsed, flight.size)
        self.batch.note_counted(len(flight.positions), claim.failed, claim.retries)
        if self.is_finished and not self._flights:
            inbox().is_sent(self._body_id)  # The last part has sent it, or died before it could.
        return ()

    def lost(self, positions: Sequence[int], error: BaseException) -> None:
        if positions:
            self.batch.note_answer(Outcome(0, error=error))

    def _follows_up(self, body_id: str) -> bool:
        """Do what the process that ran the last part died before; the watchdog on the workers does it, if it runs."""
        self._looks += 1
        if self._looks > chord_recovery.MISSES:
            return False
        inbox().expect(body_id, self._reduced)
        with broker() as queue_side:
            chord_recovery.finish(self.batch.id, queue_side)
        return True

    def _reduced(self, envelope_id: str, answer: Mapping[str, Any] | BaseException) -> None:
        if isinstance(answer, EnvelopeLostError) and self._follows_up(envelope_id):
            return
        if isinstance(answer, BaseException):
            self.batch.fail(answer)
            return
        client = shared()
        try:
            if answer["status"] != "SUCCESS":
                raise failure_of(answer)
            (outcome,) = open_report(str(answer["result"]), envelope_id, client).outcomes()
        except Exception as error:
            outcome = Outcome(0, error=error)
        self.batch.note_answer(outcome)
        client.delete(*(OUTCOME + sent for sent in self.sent_ids))
