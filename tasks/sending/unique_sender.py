"""One call with a unique key: sent if it has the key, else attached to the call that has, or dropped.

Results are announced to the process that has sent a call, so an attached one asks for its own, five times a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import redis

from graft.config.deployment import part
from graft.config.transport.unique import HeldError, Terms
from graft.tasks.envelope import Child, Envelope
from graft.tasks.errors import CancelledBatchError, EnvelopeLostError
from graft.tasks.queues import unique
from graft.tasks.results.outcomes import Outcomes
from graft.tasks.results.subscriber import Result, inbox
from graft.tasks.sending.batch_sender import BatchOptions, BatchSender
from graft.tasks.sending.in_flight import SENT_AT_MOST, OutgoingMessage, SentEnvelope
from graft.tasks.sending.sources import ListSource

logger = logging.getLogger(__name__)

ASK_EVERY: Final = 0.2


class UniqueSender(BatchSender[Outcomes]):
    """The sending side of a batch of one item, of which there is one at a time."""

    def __init__(
        self, item: Any, options: BatchOptions, wake: Callable[[BatchSender[Any]], None], terms: Terms
    ) -> None:  # fmt: skip
        super().__init__(Outcomes(1), ListSource([item]), options, wake)
        self._terms = terms
        self._holder = ""  # The call that this one is attached to.
        self._times_lost = 0

    def _message(self, envelope: Envelope) -> OutgoingMessage:
        return replace(super()._message(envelope), unique=self._terms, on_held=self._attach_or_drop)

    def _attach_or_drop(self, held: HeldError) -> None:
        """Another call has the key, so this one was not sent. On the publisher's thread."""
        (own,) = self.sent_ids
        self.sent_ids.clear()
        self._in_flight.answered(own)
        inbox().forget(own)
        if self._terms.if_running == "drop":
            self._note_failed((0,), CancelledBatchError(f"dropped: {held}"))
            return
        self._holder = held.holder
        self._in_flight.add_children([(held.holder, (0,))])
        inbox().expect_children([held.holder], self.answered)
        part(_AttachedCalls).add(held.holder, self.receiver.done)

    def answered(self, envelope_id: str, result: Result) -> None:
        if isinstance(result, EnvelopeLostError) and envelope_id == self._holder and self._times_lost < SENT_AT_MOST:
            self._times_lost += 1  # Whoever has sent it sends it again.
            inbox().expect_children([envelope_id], self.answered)
        else:
            super().answered(envelope_id, result)

    def _cut_short(self) -> None:
        if not self._holder:
            super()._cut_short()
        elif self._in_flight.answered(self._holder) is not None:
            reason = f"cancelled; the call {self._holder}, which it was attached to, goes on"
            self._note_failed((0,), CancelledBatchError(reason))

    def _withdraw_later(self) -> None:
        ids = list(self.sent_ids)
        super()._withdraw_later()
        for envelope_id in ids:
            if self._in_flight.get(envelope_id) is None:
                unique.end_of(self._terms, envelope_id)

    def _take_result(self, envelope_id: str, text: str, sent: SentEnvelope) -> Sequence[Child]:
        return self._take_report(envelope_id, text, sent, is_kept=True)


class _AttachedCalls:
    """Asks for the results of calls that other processes have sent, while somebody here waits for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, list[Callable[[], bool]]] = {}

    def add(self, call_id: str, is_done: Callable[[], bool]) -> None:
        with self._lock:
            is_first = not self._open
            self._open.setdefault(call_id, []).append(is_done)
        if is_first:
            threading.Thread(target=self._ask, name="graft-attached", daemon=True).start()

    def _ask(self) -> None:
        while True:
            time.sleep(ASK_EVERY)
            with self._lock:
                left = {call: [each for each in waiting if not each()] for call, waiting in self._open.items()}
                self._open = {call: waiting for call, waiting in left.items() if waiting}
                calls = list(self._open)
            if not calls:
                return
            try:
                inbox().look_up(calls)
            except (redis.RedisError, OSError) as error:  # The subscriber says so.
                logger.debug("could not ask for the results of attached calls: %s", error)
