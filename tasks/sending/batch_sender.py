"""Cuts one batch into envelopes, as many at a time as may be in flight, and takes their results in.

    publisher's thread ── cut ──► messages            subscriber's thread ── answered ──► OutcomeReceiver

Both threads hold the lock of what is in flight for moments only. How large an envelope is, and whether one more may
leave, is decided in sizing.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from graft.config.deployment import app_name, settings
from graft.config.redis_client import broker
from graft.config.transport import due
from graft.config.transport.channel import Channel
from graft.config.transport.fence import Fence
from graft.tasks.callables import function_store
from graft.tasks.callables.references import FunctionRef
from graft.tasks.delivery import cancellation
from graft.tasks.envelope import RUN_ENVELOPE, Child, Envelope, Outcome, WireFunction
from graft.tasks.errors import BrokerUnavailable, CancelledBatchError, EnvelopeLostError
from graft.tasks.ids import new_id
from graft.tasks.messages import payloads
from graft.tasks.monitoring.worker_registry import slots
from graft.tasks.policy import ONCE, RetryPolicy
from graft.tasks.results import early_outcomes
from graft.tasks.results.backend import results_backend
from graft.tasks.results.outcomes import OutcomeReceiver
from graft.tasks.results.result_store import open_report
from graft.tasks.results.subscriber import Result, failure_of, inbox
from graft.tasks.sending import pace_store
from graft.tasks.sending.envelope_bound import EnvelopeBound
from graft.tasks.sending.fair_share import FairShare
from graft.tasks.sending.in_flight import InFlight, OutgoingMessage, SentEnvelope
from graft.tasks.sending.packing import ItemPacker, PackedItems
from graft.tasks.sending.sizing import AHEAD, Pace, Run, SendingRules, SendingState, Sizing, share_of
from graft.tasks.sending.sources import Source

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=OutcomeReceiver)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The caller's options for one batch.

    ``in_flight`` counts envelopes, None leaves it to the number of workers. ``plain_in_flight`` replaces it once a
    plain callable has shown that it returns no awaitables: its envelopes run one item at a time then, so as many of
    them may be in flight as there may be items. ``bound`` counts the envelopes of several batches. ``share`` is the
    weight of this batch among those that wait beside it. ``due`` is when it may begin, in seconds since the epoch by
    Redis's clock; None for at once.
    """

    function: FunctionRef
    queue: str
    priority: int
    batch_size: int | None = None
    in_flight: int | None = None
    plain_in_flight: int | None = None
    concurrency: int = 1
    timeout: float | None = None
    policy: RetryPolicy = ONCE
    unpack: bool = False
    bound: EnvelopeBound | None = None
    share: float = 1.0
    due: float | None = None

    @property
    def pace_name(self) -> str:
        """The name under which the pace of the callable is remembered."""
        ref = self.function
        return ref.name if ref.how == "import" else f"{ref.name}:{len(ref.payload)}"


class BatchSender(Generic[R]):
    """The sending side of one batch; *wake* has the publisher call :meth:`cut` soon."""

    def __init__(
        self, receiver: R, source: Source, options: BatchOptions, wake: Callable[[BatchSender[Any]], None]
    ) -> None:
        self.receiver = receiver
        self.source = source
        self.options = options
        self.sent_ids: list[str] = []
        self.is_finished = False  # Everything has been sent.
        self.is_paused = False  # Nothing more is sent for now.
        self._paused_at = self._paused_for = 0.0
        self._wake = wake
        self._packer = ItemPacker(source, receiver.begin)
        self._in_flight = InFlight()
        self._fair_share = FairShare(options.share, self._in_flight)
        bounds = settings()
        sizing = Sizing(bounds.envelope_seconds, bounds.envelope_items, bounds.envelope_limit, options.concurrency)
        self._rules = self._usual_rules = SendingRules(sizing, options.batch_size, options.in_flight)
        self._function: WireFunction | None = None
        self._pace = Pace()
        self._envelopes = 0
        self._item_size = 0.0  # Bytes that an item took in the envelope cut last.
        self._is_cancelling = self._is_cancelled = self._ends_running = False
        self._is_warned = False
        self.fence: Fence | None = None  # Where it may send under a lease alone.

    # ---- on the publisher's thread ----------------------------------------------------------------------------------

    def cut(self, client: Any) -> list[OutgoingMessage]:
        """The envelopes that may leave now. Blocks for a round trip the first time (function, pace)."""
        if self.is_paused:
            return []
        self._offer_function(client)
        if self.source.ahead is not None and self._envelopes:
            self.source.ahead = max(AHEAD.taken_by(self._sent_pace), 2 * (self.options.batch_size or 0))
        found = 1 if self._packer.is_drained else self._slots(client)
        self._fair_share.note_slots(found)
        messages: list[OutgoingMessage] = []
        while not self._packer.is_drained:
            state = self._state()
            if not self._rules.may_send(state, found):
                break
            size, bound = self._rules.next_size(state, found), self.options.bound
            if bound is not None:
                size = min(size, share_of(self._packer.ready, bound.limit, state.pace))
            if self.source.ready < size and not self.source.eager and self._in_flight:
                break  # A stream that trickles: what is in flight will wake us, and more will have come.
            if bound is not None and not bound.take(self):
                break
            envelope = self._next_envelope(size)
            if envelope is not None:
                messages.append(self._message(envelope))
            elif bound is not None:
                bound.give_back()
        self._note_end()
        return messages

    def cut_again(self, client: Any) -> list[OutgoingMessage]:
        """The envelopes that got lost, to be sent once more under their own ids."""
        lost = self._in_flight.take_lost()
        if lost:
            function_store.forget_stored()
            self._offer_function(client)
            # A worker that missed the callable has answered under the same ids.
            client.delete(*(results_backend().get_key_for_task(message.id) for message in lost))
        return lost

    def pass_on(self, messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
        """Those of *messages*, which are expected now, that the publisher sends."""
        return messages

    def carry_out_cancel(self) -> None:
        """Do what :meth:`cancel` asked for. Where that raises, the next call does it."""
        if not self._is_cancelling:
            return
        self._is_cancelling = False
        try:
            self._cut_short()
        except BaseException:
            self._is_cancelling = True
            raise

    def _cut_short(self) -> None:
        self._is_cancelled = True
        cancellation.cancel(self.receiver.id, settings().result_ttl, running=self._ends_running)
        if self.options.due is not None:
            self._withdraw_later()
        if not self.is_finished:
            self.is_finished = True
            unsent = self._packer.close()
            self.receiver.note_total(self._packer.taken)
            self._note_failed(unsent, CancelledBatchError("cancelled before it was sent"))

    def _withdraw_later(self) -> None:
        """What waits for its time never begins; nobody need wait for that."""
        with broker() as client:
            removed = due.remove([envelope_id for envelope_id, _ in self._in_flight.all()], client)
        for envelope_id in removed:
            sent = self._in_flight.answered(envelope_id)
            inbox().forget(envelope_id)
            if sent is not None:
                self._note_failed(sent.pending, CancelledBatchError("cancelled before its time had come"))

    def spread(self, channel: Channel) -> None:
        """Correct the order of the envelopes that wait, if they take much longer than was expected, or less long."""
        self._fair_share.spread(channel, self.options.queue, self.options.priority, self.receiver.id)

    def remember_pace(self, client: Any) -> None:
        pace_store.save(self.options.pace_name, self._pace, client)

    @property
    def unsent(self) -> int:
        """Items that are known of and have not been sent."""
        return 0 if self.is_finished else self._packer.ready

    @property
    def chord(self) -> Mapping[str, Any] | None:
        """The chord that the envelopes are parts of, if any."""
        return None

    @property
    def _sent_pace(self) -> Pace:
        return self._pace.with_sent(self._envelopes, self._item_size)

    def _state(self) -> SendingState:
        unfinished = 0.0
        if self._rules.is_spread and self.source.remaining is not None:
            unfinished = self._in_flight.unfinished(self._pace.seconds / self.options.concurrency)
        return SendingState(
            self._pace, self._sent_pace, self._packer.remaining, self.source.ahead, len(self._in_flight),
            self._in_flight.size, unfinished, self.receiver.unread,
        )  # fmt: skip

    def _offer_function(self, client: Any) -> None:
        """Have the callable where workers find it, and its pace known."""
        if self._function is None:
            self._function = function_store.store(self.options.function)
            self._pace = pace_store.load(self.options.pace_name, client)
        elif not function_store.is_stored(self._function):
            function_store.store(self.options.function)

    def _slots(self, client: Any) -> int:
        queue = self.options.queue
        found = slots(queue, client)
        if not found and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "no live worker reads the queue %s: items wait until one does (celery -A %s worker -Q %s)",
                queue,
                app_name(),
                queue,
            )
        return max(found, 1)

    def _next_envelope(self, size: int) -> Envelope | None:
        """An envelope of *size* items at most; None when none of them could travel."""
        packed = self._packer.pack(size)
        if packed.refused:
            self.receiver.note_sent(len(packed.refused), envelopes=0)
            self._note_refused(packed.refused)
        return self._envelope(packed) if packed.positions else None

    def _note_refused(self, refused: Sequence[Outcome]) -> None:
        """Items that cannot travel have their outcome at once."""
        self.receiver.note_outcomes(list(refused))

    def _envelope(self, packed: PackedItems) -> Envelope:
        assert self._function is not None
        options, is_part = self.options, self.chord is not None
        return Envelope(
            new_id(), self.receiver.id, self._function, packed.positions, packed.items, packed.is_pickled,
            options.unpack, self._rules.sizing.concurrency, options.timeout, options.policy, stores_report=is_part,
            shared=not is_part and not (options.in_flight or options.batch_size or options.bound),
        )  # fmt: skip

    def _message(self, envelope: Envelope) -> OutgoingMessage:
        sealed = envelope.sealed()
        argument = payloads.argument(sealed)
        self.receiver.note_sent(len(envelope.items))
        if self.source.remaining is not None:  # A stream may be endless, and has no record as a group.
            self.sent_ids.append(envelope.id)
        self._envelopes += 1
        self._item_size = len(sealed) / len(envelope.items)
        message = OutgoingMessage(
            envelope.id,
            RUN_ENVELOPE,
            (argument,),
            self.options.queue,
            self.options.priority,
            f"{envelope.function.name}, {len(envelope.items)} items from {envelope.positions[0]}",
            self.receiver.id,
            self._envelopes - 1,
            self.chord,
            sealed if argument == payloads.BESIDE else None,
            self.fence,
            self._fair_share.flow,
            self._pace_of(envelope).envelope_seconds(len(envelope.items), envelope.concurrency),
            self.options.due,
        )
        self._in_flight.sent(message, envelope.positions, len(sealed))
        return message

    def _pace_of(self, envelope: Envelope) -> Pace:
        return self._pace

    def _note_end(self) -> None:
        if self._packer.remaining == 0 and not self.is_finished:
            self.is_finished = True
            if self.source.error is not None:
                self.receiver.fail(self.source.error)
            self.receiver.note_total(self._packer.taken)

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def answered(self, envelope_id: str, result: Result) -> None:
        """Take the result of one envelope in, or early outcomes of it."""
        if isinstance(result, Mapping) and result["status"] == early_outcomes.EARLY:
            self._take_early(envelope_id, result)
            return
        error = failure_of(result) if isinstance(result, Mapping) else result
        if isinstance(error, EnvelopeLostError) and self._in_flight.lost(envelope_id):
            logger.warning("envelope %s got lost in Redis and is sent again", envelope_id)
            self._wake(self)
            return
        sent = self._in_flight.answered(envelope_id)
        if sent is None:
            return
        if self.options.bound is not None:
            self.options.bound.give_back()
        children: Sequence[Child] = ()
        if isinstance(result, Mapping) and error is None:
            children = self._take_result(envelope_id, str(result["result"]), sent)
        elif isinstance(result, BrokerUnavailable):
            self.receiver.fail(result)
        elif error is not None:
            self._note_failed(sent.pending, error)
        self._expect_children(envelope_id, sent, children)
        if not self.is_finished:
            self._wake(self)

    def _take_early(self, envelope_id: str, record: Mapping[str, Any]) -> None:
        sent = self._in_flight.get(envelope_id)
        if sent is None:
            return
        try:
            report = early_outcomes.read(record, envelope_id)
            outcomes = sent.news(report.outcomes())
        except Exception as error:  # The report will have them.
            logger.warning("dropped early outcomes of envelope %s: %r", envelope_id, error)
            return
        sent.early.update(outcome.index for outcome in outcomes)
        if outcomes:
            self.receiver.note_outcomes(outcomes)
        self._expect_children(envelope_id, sent, report.children)

    def _expect_children(self, envelope_id: str, sent: SentEnvelope, children: Sequence[Child]) -> None:
        """Wait for the results of *children*, which have items of an envelope, as far as this is news."""
        if news := [child for child in children if child[1][0] not in sent.early]:
            sent.early.update(position for _, positions in news for position in positions)
            self._note_children(envelope_id, news)
            self._in_flight.add_children(news)
            inbox().expect_children([child_id for child_id, _ in news], self.answered)

    def _note_children(self, envelope_id: str, news: Sequence[Child]) -> None:
        """Workers have made *news* of items of an envelope."""

    def _take_result(self, envelope_id: str, text: str, sent: SentEnvelope) -> Sequence[Child]:
        """Take a report in; the envelopes that answer for its other items."""
        return self._take_report(envelope_id, text, sent)

    def _take_report(
        self, envelope_id: str, text: str, sent: SentEnvelope, *, is_kept: bool = False
    ) -> Sequence[Child]:  # fmt: skip
        try:
            report = open_report(text, envelope_id, is_kept=is_kept)
        except Exception as error:
            self._note_failed(sent.pending, error)
            return ()
        if self.options.plain_in_flight is not None:
            self._rules = self._usual_rules if report.awaited else self._plain_rules()
        self._fair_share.settle(sent, report.elapsed)
        share = len(report.positions) / len(sent.positions)
        if not report.retries and not self._is_cancelled:  # Else items are counted that did not run in this run.
            self._learn(len(report.positions), report.busy, report.elapsed, max(int(sent.size * share), report.size))
        if report.packed or sent.early:
            self.receiver.note_outcomes(sent.news(report.outcomes()), report.retries)
        else:
            self.receiver.note_values(report.positions, report.values, report.retries)
        return report.children

    def _plain_rules(self) -> SendingRules:
        rules = self._usual_rules
        return replace(
            rules, sizing=replace(rules.sizing, concurrency=1), in_flight=self.options.plain_in_flight, is_plain=True
        )

    def _learn(self, items: int, busy: float, elapsed: float, size: int) -> None:
        self._pace = self._pace.updated(Run(items, busy, elapsed, self.options.concurrency), size)
        if self._fair_share.is_misjudged(self._pace, self._rules.sizing.concurrency):
            self._wake(self)

    def _note_failed(self, positions: Sequence[int], error: BaseException) -> None:
        """Every item at *positions* has this error."""
        self.receiver.note_outcomes([Outcome(position, error=error) for position in positions])

    # ---- on any thread ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to send."""
        self._wake(self)

    @property
    def may_pause(self) -> bool:
        """Whether holding up what was not sent holds the batch up."""
        return True

    @property
    def paused_for(self) -> float:
        """Seconds for which it was paused, all in all."""
        return self._paused_for + (time.monotonic() - self._paused_at if self.is_paused else 0.0)

    def note_pause(self, is_paused: bool) -> None:
        """Hold up what was not sent, or go on; what was sent is finished. Returns at once."""
        if self.may_pause and is_paused != self.is_paused:
            self._paused_for, self._paused_at = self.paused_for, time.monotonic()
            self.is_paused = is_paused
            self._wake(self)

    def fail(self, error: BaseException) -> None:
        """Nothing more is sent, and nobody waits any more for what was."""
        self.source.close()
        self.receiver.fail(error)
        bound = self.options.bound
        for envelope_id, _ in self._in_flight.all() if bound is not None else ():
            if self._in_flight.answered(envelope_id) is not None and bound is not None:
                bound.give_back()

    # ---- on the caller's thread -------------------------------------------------------------------------------------

    def cancel(self, *, running: bool = False) -> None:
        """Stop sending, and flag what has not begun, or what is *running* too. Returns at once; the publisher's thread
        carries it out.
        """
        self._ends_running |= running
        self._is_cancelling = True
        self._wake(self)
