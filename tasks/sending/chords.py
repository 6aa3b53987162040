"""A batch with a reduce step: its envelopes are the header of a Celery chord, the reducer its body.

A chord must know its number of parts before the first one is done, so all envelopes are cut before any is sent. The
values stay in Redis and go from the workers straight to the reducer; the caller receives counts, and one outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graft.config.redis_client import broker, shared
from graft.tasks.callables import function_store
from graft.tasks.callables.references import FunctionRef
from graft.tasks.cleanup import chord_recovery
from graft.tasks.delivery import chord_records
from graft.tasks.envelope import Child, Envelope, Outcome, error_frame
from graft.tasks.errors import CancelledBatchError, EnvelopeLostError
from graft.tasks.ids import new_id
from graft.tasks.results.backend import results_backend
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.results.result_store import OUTCOME, StoredReport, open_report
from graft.tasks.results.subscriber import Result, failure_of, inbox
from graft.tasks.running.envelope_task import reduce_batch
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.in_flight import OutgoingMessage, SentEnvelope
from graft.tasks.sending.sources import ListSource


class ReducingSender(BatchSender[Outcomes]):
    """The sending side of a batch whose values are reduced to one on a worker."""

    def __init__(
        self,
        outcomes: Outcomes,
        source: ListSource,
        options: BatchOptions,
        wake: Callable[[BatchSender[Any]], None],
        reducer: FunctionRef,
        *,
        keeps_errors: bool = False,
    ) -> None:
        super().__init__(outcomes, source, options, wake)
        self._reducer = reducer
        self._unsent: deque[Envelope] | None = None  # None until everything has been cut.
        self._chord: Mapping[str, Any] | None = None
        self._body_id = new_id()
        self._keeps_errors = keeps_errors
        self._refused: dict[int, BaseException] = {}  # Items that cannot travel.
        self._recoveries = 0

    @property
    def chord(self) -> Mapping[str, Any] | None:
        return self._chord or {}

    def cut(self, client: Any) -> list[OutgoingMessage]:
        if self.is_paused:
            return []
        if self._unsent is None:
            self._unsent = self._cut_everything(client)
        messages = []
        found = self._slots(client)
        while self._unsent and self._rules.may_send(self._state(), found):
            messages.append(self._message(self._unsent.popleft()))
        if not self._unsent:
            self._note_end()
        return messages

    def _cut_everything(self, client: Any) -> deque[Envelope]:
        self._offer_function(client)
        found = self._slots(client)
        total = self.source.remaining or 0
        # Nothing can be cut smaller later on: eight envelopes a slot keep the slots evenly loaded to the end.
        even = -(-total // (8 * found))
        learnt = min(self._rules.next_size(self._state(), found), even) if self._pace.items else even
        size = self.options.batch_size or max(1, learnt)
        cut: deque[Envelope] = deque()
        while not self._packer.is_drained:
            envelope = self._next_envelope(size)
            if envelope is not None:
                cut.append(envelope)
        if self._refused and (not self._keeps_errors or not cut):
            self.receiver.note_reduced(Outcome(0, error=next(iter(self._refused.values()))))
            return deque()
        self._open_chord(total, cut)
        return cut

    def _open_chord(self, total: int, cut: Sequence[Envelope]) -> None:
        reducer = function_store.store(self._reducer)
        refused = {position: error_frame(error) for position, error in self._refused.items()}
        body = Envelope(self._body_id, self.receiver.id, reducer, range(total), [], False, carried=refused)
        how = {"keeps_errors": True} if self._keeps_errors else {}
        signature = reduce_batch.s(body.seal(), **how).set(
            task_id=self._body_id, queue=self.options.queue, priority=self.options.priority
        )
        self._chord = dict(signature)
        inbox().expect(self._body_id, self._reduced, is_sent=False)
        results_backend().set_chord_size(self.receiver.id, len(cut))
        chord_records.note(
            self.receiver.id, self._chord, {index: envelope.id for index, envelope in enumerate(cut)}, is_watched=True
        )

    def _note_refused(self, refused: Sequence[Outcome]) -> None:
        self._refused |= {outcome.index: outcome.error for outcome in refused if outcome.error is not None}
        if self._keeps_errors:
            self.receiver.note_counted(len(refused), len(refused), 0)

    def _cut_short(self) -> None:
        lacks_parts = not self.is_finished
        super()._cut_short()
        if lacks_parts:  # The chord lacks the parts that were not sent, and nobody will send its body.
            self._unsent = deque()
            self.receiver.note_reduced(Outcome(0, error=CancelledBatchError("cancelled before all of it was sent")))
            inbox().forget(self._body_id)
            chord_records.forget(self.receiver.id)

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def _take_result(self, envelope_id: str, text: str, sent: SentEnvelope) -> Sequence[Child]:
        stored = StoredReport.parse(text)
        self._fair_share.settle(sent, stored.elapsed)
        if not stored.retries:
            self._learn(len(sent.positions), stored.busy, stored.elapsed, sent.size)
        self.receiver.note_counted(len(sent.positions), stored.failed, stored.retries)
        if self.is_finished and not self._in_flight:
            inbox().is_sent(self._body_id)  # The last part has sent it, or died before it could.
        return ()

    def _note_failed(self, positions: Sequence[int], error: BaseException) -> None:
        if positions:
            self.receiver.note_reduced(Outcome(0, error=error))

    def _recovers(self, body_id: str) -> bool:
        """Do what the process that ran the last part died before; the watchdog on the workers does it, if it runs."""
        self._recoveries += 1
        if self._recoveries > chord_recovery.MISSES:
            return False
        inbox().expect(body_id, self._reduced)
        with broker() as queue_side:
            chord_recovery.finish(self.receiver.id, queue_side)
        return True

    def _reduced(self, envelope_id: str, result: Result) -> None:
        if isinstance(result, EnvelopeLostError) and self._recovers(envelope_id):
            return
        if not isinstance(result, Mapping):
            self.receiver.fail(result)
            return
        error = failure_of(result)
        if error is not None:
            outcome = Outcome(0, error=error)
        else:
            try:
                (outcome,) = open_report(str(result["result"]), envelope_id).outcomes()
            except Exception as error:
                outcome = Outcome(0, error=error)
        self.receiver.note_reduced(outcome)
        shared().delete(*(OUTCOME + sent for sent in self.sent_ids))
