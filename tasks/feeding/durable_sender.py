"""Sends a durable batch: a BatchSender whose items come from pages, and whose outcomes workers keep in Redis.

    pages ── cut ──► note in the record, under the lease ──► publish, under the lease ──► workers keep the outcomes

Everything that must outlive this process is in the record before it happens. What the next feeder finds there as sent,
and neither answered nor anywhere in Redis, it sends again under the same id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import redis

from graft.config import lua
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.config.transport.fence import FencedOffError
from graft.tasks.delivery import cancellation
from graft.tasks.durable import outcomes
from graft.tasks.durable.feeder_lease import LEASE, FeederLease
from graft.tasks.durable.pages import PageReader, trim
from graft.tasks.durable.positions import Runs, as_runs, as_text, clear_runs, positions_in, runs_in, without
from graft.tasks.durable.record import BatchRecord
from graft.tasks.envelope import Child, Envelope, Outcome
from graft.tasks.errors import CancelledBatchError, EnvelopeError, EnvelopeLostError, TaskQueueError
from graft.tasks.feeding.page_source import PageSource
from graft.tasks.results import early_outcomes
from graft.tasks.results.backend import results_backend
from graft.tasks.results.outcomes import Progress
from graft.tasks.results.result_store import StoredReport
from graft.tasks.results.subscriber import Result, failure_of, inbox
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.in_flight import OutgoingMessage, SentEnvelope
from graft.tasks.sending.packing import PackedItems

logger = logging.getLogger(__name__)

COMPARE_EVERY: Final = 2.0  # Seconds between two comparisons of what is in flight with the record.
AT_ONCE: Final = 1000  # Envelopes noted in one script.

NOTE: Final = lua.load(__file__, "note_sent")


@dataclass(frozen=True)
class Snapshot:
    """What the record says of the items at one moment: those without an outcome, failed ones, envelopes under way."""

    clear: list[tuple[int, int]]
    failed: bytes
    sent: dict[str, list[tuple[int, int]]]

    @classmethod
    def read(cls, record: BatchRecord, client: Any) -> Snapshot:
        done, failed, sent = record.keys.parts("done", "failed", "sent")
        with client.pipeline(transaction=True) as pipe:
            pipe.get(done)
            pipe.get(failed)
            pipe.hgetall(sent)
            bits, failures, noted = pipe.execute()
        return cls(clear_runs(bits or b"", record.total), failures or b"", in_envelopes(noted))

    @property
    def unsent(self) -> list[tuple[int, int]]:
        """The runs of items that nobody has sent."""
        return without(self.clear, (run for runs in self.sent.values() for run in runs))


def in_envelopes(noted: Mapping[bytes, bytes]) -> dict[str, list[tuple[int, int]]]:
    """The runs of items of each envelope under way, as the record has them."""
    return {name.decode(): runs_in(runs.decode()) for name, runs in noted.items()}


class FeedReceiver:
    """Stands where the caller's outcomes would: counts come from the record, and so does the end."""

    unread = 0

    def __init__(self, record: BatchRecord) -> None:
        self.id = record.id
        self.record = record
        self.broken: BaseException | None = None
        self._is_over = False

    def begin(self, position: int) -> bool:
        return True

    def note_sent(self, items: int, envelopes: int = 1) -> None: ...

    def note_total(self, total: int) -> None: ...

    def note_outcomes(self, outcomes_: list[Outcome], retries: int = 0) -> None:
        for outcome in outcomes_:
            assert outcome.error is not None
            run = [(outcome.index, outcome.index)]
            outcomes.keep_failed(shared(), self.id, self.record.generation, run, outcome.error)

    def note_values(self, positions: Sequence[int], values: Sequence[Any], retries: int = 0) -> None:
        raise AssertionError("workers keep the values of a durable batch")

    def fail(self, error: BaseException) -> None:
        self.broken = error

    def end(self) -> None:
        self._is_over = True

    def done(self) -> bool:
        return self._is_over or self.broken is not None

    def progress(self) -> Progress:
        now = self.record
        return Progress(now.total, now.done + now.sent, now.done, now.failed, now.envelopes, now.retries, now.seconds)


class DurableSender(BatchSender[FeedReceiver]):
    """The sending side of one durable batch, for as long as this process has the lease."""

    def __init__(
        self,
        record: BatchRecord,
        options: BatchOptions,
        lease: FeederLease,
        client: Any,
        wake: Callable[[BatchSender[Any]], None],
    ) -> None:
        self._pages = PageReader(record.keys, client)
        self._snapshot: Snapshot | None = Snapshot.read(record, client)
        source = PageSource(self._pages, self._snapshot.unsent)
        super().__init__(FeedReceiver(record), source, options, wake)
        self.pages_source = source
        self.lease, self.fence = lease, lease.fence
        self.is_paused = record.is_paused
        self._compare_at = 0.0
        self._trimmed: set[int] = set()  # Pages of which failed items alone are left.
        self._lost: list[tuple[str, SentEnvelope]] = []
        self._losing = threading.Lock()
        self.idle_since = time.monotonic()

    # ---- on the publisher's thread ----------------------------------------------------------------------------------

    def cut(self, client: Any) -> list[OutgoingMessage]:
        messages = super().cut(client)
        if gone := self.pages_source.missing:
            self.pages_source.missing = []
            self._note_failed_runs(gone, EnvelopeError(
                "the item is not among those that the batch keeps: it could not travel when it was submitted, Redis "
                "has lost its page, or its source gives it no more (the log of who feeds says so); submit it again"
            ))  # fmt: skip
        return messages

    def cut_again(self, client: Any) -> list[OutgoingMessage]:
        self._compare(client)
        with self._losing:
            lost, self._lost = self._lost, []
        messages = super().cut_again(client)
        for envelope_id, sent in lost:
            message = self._made_again(envelope_id, sent, client)
            if message is not None:
                messages.append(message)
        return messages

    def pass_on(self, messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
        """Note in the record what is about to be sent; nothing is, where the lease is another's by now."""
        for at in range(0, len(messages), AT_ONCE):
            try:
                is_ours = self._note(messages[at : at + AT_ONCE])
            except (redis.RedisError, OSError) as error:
                self.fail(error)  # Read anew from the record, when Redis is back.
                return []
            if not is_ours:
                self.fail(FencedOffError("another worker feeds, or the batch is gone"))
                return []
        if messages:
            self.idle_since = time.monotonic()
        return messages

    def _note(self, messages: Sequence[OutgoingMessage]) -> bool:
        texts: list[str] = []
        for message in messages:
            sent = self._in_flight.get(message.id)
            if sent is not None:
                texts += (message.id, as_text(as_runs(sent.positions)))
        keys = self.receiver.record.keys
        ttl = int(settings().batch_ttl)
        return not texts or bool(
            NOTE([LEASE, keys.record, keys.part("sent")], [self.lease.token, ttl, *texts], shared())
        )

    def _envelope(self, packed: PackedItems) -> Envelope:
        return replace(super()._envelope(packed), generation=self.receiver.record.generation)

    def _message(self, envelope: Envelope) -> OutgoingMessage:
        message = super()._message(envelope)
        self.sent_ids.clear()  # Its record says what was sent; Celery's would be half of it after a change of feeders.
        return message

    def _cut_short(self) -> None:
        cancellation.cancel(self.receiver.id, settings().batch_ttl, running=self._ends_running)
        self._is_cancelled = self.is_finished = True
        runs = [*as_runs(position for position, _ in self._packer.backlog), *self.pages_source.rest()]
        self._note_failed_runs(runs, CancelledBatchError("cancelled before it was sent"))
        self._packer.close()

    def _compare(self, client: Any) -> None:
        """Wait for what the record has in flight, also children and what earlier feeders sent, and for nothing else."""
        found, self._snapshot = self._snapshot, None
        is_first = found is not None
        if found is None:
            if time.monotonic() < self._compare_at:
                return
            sent = in_envelopes(client.hgetall(self.receiver.record.keys.part("sent")))
        else:
            sent = found.sent
        self._compare_at = time.monotonic() + COMPARE_EVERY
        for envelope_id, _ in self._in_flight.all():
            if envelope_id not in sent and self._in_flight.answered(envelope_id) is not None:
                inbox().forget(envelope_id)
        ours = {envelope_id for envelope_id, _ in self._in_flight.all()}
        news = [(name, tuple(positions_in(runs))) for name, runs in sent.items() if name not in ours]
        self._in_flight.add_children(news)
        inbox().expect_children([name for name, _ in news], self.answered, is_doubtful=is_first)
        if sent:
            self.idle_since = time.monotonic()

    def _made_again(self, envelope_id: str, sent: SentEnvelope, client: Any) -> OutgoingMessage | None:
        """The message of an envelope that another process made, under the same id."""
        self._offer_function(client)
        client.delete(results_backend().get_key_for_task(envelope_id))  # That a worker missed the callable, perhaps.
        source = PageSource(self._pages, as_runs(sent.positions))
        items = source.take(len(sent.positions))
        if source.missing or len(items) < len(sent.positions):
            error = EnvelopeLostError(f"envelope {envelope_id} got lost, and the items in it are not kept any more")
            self._note_failed(sent.positions, error)
            client.hdel(self.receiver.record.keys.part("sent"), envelope_id)
            self._in_flight.answered(envelope_id)
            return None
        packed = PackedItems(sent.positions, items, source.encoded)
        logger.warning("envelope %s got lost in Redis and is sent again", envelope_id)
        return self._message(replace(self._envelope(packed), id=envelope_id))

    # ---- on the subscriber's thread ---------------------------------------------------------------------------------

    def answered(self, envelope_id: str, result: Result) -> None:
        is_early = isinstance(result, Mapping) and result["status"] == early_outcomes.EARLY
        error = failure_of(result) if isinstance(result, Mapping) and not is_early else result
        sent = self._in_flight.get(envelope_id)
        if isinstance(error, EnvelopeLostError) and sent is not None and sent.message is None:
            with self._losing:
                self._lost.append((envelope_id, sent))
            self._wake(self)
            return
        super().answered(envelope_id, result)
        self.idle_since = time.monotonic()
        if isinstance(error, TaskQueueError) and self._in_flight.get(envelope_id) is None and not self.receiver.broken:
            # No worker has kept an outcome for it; ours are in the record by now.
            shared().hdel(self.receiver.record.keys.part("sent"), envelope_id)

    def _take_result(self, envelope_id: str, text: str, sent: SentEnvelope) -> Sequence[Child]:
        stored = StoredReport.parse(text)
        self._fair_share.settle(sent, stored.elapsed)
        if not stored.retries and not self._is_cancelled:
            # Children have taken some of its items; what it cost was for the others.
            items = len(sent.pending) or len(sent.positions)
            self._learn(items, stored.busy, stored.elapsed, sent.size * items // len(sent.positions))
        return ()

    def _note_failed(self, positions: Sequence[int], error: BaseException) -> None:
        self._note_failed_runs(as_runs(sorted(positions)), error)

    def _note_failed_runs(self, runs: Runs, error: BaseException) -> None:
        outcomes.keep_failed(shared(), self.receiver.id, self.receiver.record.generation, list(runs), error)

    # ---- on any thread ----------------------------------------------------------------------------------------------

    @property
    def may_pause(self) -> bool:
        """Its record says whether it is paused."""
        return False

    def fail(self, error: BaseException) -> None:
        """Send nothing more here; the batch goes on from its record."""
        self.is_finished = True
        super().fail(error)

    # ---- on the feeder's thread --------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """Nothing that is lost with this process."""
        return 0

    def abandon(self) -> None:
        """Send nothing more: the batch has ended, or is another feeder's."""
        self.is_finished = True
        self.receiver.end()
        for envelope_id, _ in self._in_flight.all():
            inbox().forget(envelope_id)

    def trim(self, client: Any) -> None:
        """Drop the items that are done with."""
        found = Snapshot.read(self.receiver.record, client)
        trim(self.receiver.record.keys, client, found.clear, found.failed, self._trimmed)
