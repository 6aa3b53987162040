"""The way back: one subscriber per process receives the result of every message that the process has sent.

    worker ── publish ──► Inbox ── handler ──► BatchSender.answered ──► the batch

The ids of this process share a prefix (ids.py), so one pattern subscription is made before anything is sent and serves
for good. Pub/sub forgets what nobody received: after a reconnect, and every few seconds, results that are still
expected are looked up by key. ``AsyncResult.get()`` is never involved. A message without a result for long is searched
for on the queues and with the workers, and reported lost when it is nowhere (lost_messages.py, locate.py).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis

from graft.config.deployment import part, settings
from graft.config.redis_client import broker, connect, shared, why_not
from graft.tasks import errors, ids
from graft.tasks.callables import function_store
from graft.tasks.errors import (
    BrokerUnavailable,
    CancelledBatchError,
    EnvelopeLostError,
    ItemTimeoutError,
    TaskQueueError,
)
from graft.tasks.queues import locate
from graft.tasks.results.backend import results_backend
from graft.tasks.results.early_outcomes import EARLY
from graft.tasks.results.lost_messages import LostMessages

logger = logging.getLogger(__name__)

Meta = Mapping[str, Any]
Result = Meta | EnvelopeLostError | BrokerUnavailable  # The latter end the wait for a record.
Handler = Callable[[str, Result], None]

READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
LOOK_UP_EVERY: Final = 3.0
CHUNK: Final = 500


class Inbox:
    """Calls a handler for each expected id: with Celery's own result record, or with the error that ended the wait.

    Before, it may be called with records in the state EARLY: outcomes of an envelope that still runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._expected: dict[str, tuple[Handler, ...]] = {}  # Several where calls are attached to one (unique=).
        self._lost = LostMessages(settings().lost_after)
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def open(self) -> None:
        """Have the subscription in place before anything is sent.

        Raises:
            BrokerUnavailable: Redis did not answer within ``connect_timeout``.
        """
        if self._ready.is_set():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._failure = None
                self._thread = threading.Thread(target=self._listen, name="graft-results", daemon=True)
                self._thread.start()
        self._ready.wait(settings().connect_timeout + 0.5)
        if not self._ready.is_set():
            raise unavailable(self._failure)

    def expect(self, envelope_id: str, handler: Handler, *, is_sent: bool = True) -> None:
        """Call *handler* with the result of an envelope, or the error that ends the wait for it.

        *is_sent*: it is lost when it is found nowhere; otherwise not before :meth:`is_sent` is called.
        """
        with self._lock:
            others = self._expected.get(envelope_id, ())
            if handler not in others:
                self._expected[envelope_id] = (*others, handler)
            if is_sent:
                self._lost.add(envelope_id, time.monotonic())

    def expect_children(
        self, envelope_ids: Sequence[str], handler: Handler, *, is_doubtful: bool = False
    ) -> None:  # fmt: skip
        """The same for envelopes that others have sent, whose results may have come before anybody expected them.

        *is_doubtful*: it may have ended before it sent them, so they are searched for at once.
        """
        for envelope_id in envelope_ids:
            self.expect(envelope_id, handler, is_sent=not is_doubtful)
        if is_doubtful:
            with self._lock:
                for envelope_id in envelope_ids:
                    self._lost.add(envelope_id, time.monotonic(), patience=0.0)
        self.look_up(envelope_ids)

    def look_up(self, envelope_ids: Sequence[str]) -> None:
        """Deliver those results that there are by now, on the caller's thread."""
        self._look_up(envelope_ids, shared())

    def is_sent(self, envelope_id: str) -> None:
        """Somebody else has sent it by now, or should have."""
        with self._lock:
            if envelope_id in self._expected:
                self._lost.add(envelope_id, time.monotonic())

    def forget(self, envelope_id: str) -> None:
        with self._lock:
            self._expected.pop(envelope_id, None)
            self._lost.drop(envelope_id)

    # ---- the subscriber's thread ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        deadline = time.monotonic() + settings().connect_timeout
        wait = 0.05
        was_connected = False
        while True:
            client = connect(socket_timeout=LOOK_UP_EVERY * 4, client_name="graft-results")
            try:
                with client.pubsub() as subscriber:
                    subscriber.psubscribe(_channel(ids.prefix()) + "*")
                    # The confirmation: from here on no result can be missed.
                    subscriber.get_message(timeout=settings().connect_timeout)
                    self._look_up_all(client)
                    self._ready.set()
                    was_connected = True
                    wait = 0.05
                    self._receive(subscriber, client)
            except (redis.RedisError, OSError) as error:
                if self._ready.is_set():
                    logger.warning("lost the connection that receives results (%s); reconnecting", error)
                    self._ready.clear()
                    function_store.forget_stored()
                    deadline = time.monotonic() + settings().outage_grace
                self._failure = error
                if time.monotonic() >= deadline:
                    self._give_up(unavailable(error, was_connected=was_connected))
                    return
                time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
                wait = min(wait * 2, 1.0)
            finally:
                client.close()

    def _receive(self, subscriber: Any, client: Any) -> None:
        look_up = time.monotonic() + LOOK_UP_EVERY
        while True:
            message = subscriber.get_message(timeout=LOOK_UP_EVERY)
            if message is not None and message["type"] == "pmessage":
                self._deliver(message["data"])
            if time.monotonic() >= look_up:
                self._look_up_all(client)
                self._search(client)
                look_up = time.monotonic() + LOOK_UP_EVERY

    def _search(self, client: Any) -> None:
        """Search for messages whose results are overdue, and report those that are lost."""
        with self._lock:
            due = self._lost.due(time.monotonic())
        if not due:
            return
        try:
            with broker() as queue_side:
                missing = locate.missing(due, queue_side)
        except (redis.RedisError, OSError) as error:
            logger.debug("could not search for overdue messages: %s", error)
            return
        self._look_up(list(missing), client)  # An envelope leaves its worker after its result was stored.
        with self._lock:
            lost = self._lost.searched(due, missing, time.monotonic())
            expected = [(envelope_id, self._expected.pop(envelope_id, ())) for envelope_id in lost]
        for envelope_id, handlers in expected:
            self._call(handlers, envelope_id, _lost(envelope_id))

    def _look_up_all(self, client: Any) -> None:
        with self._lock:
            waiting = list(self._expected)
        self._look_up(waiting, client)

    def _look_up(self, waiting: Sequence[str], client: Any) -> None:
        """Fetch by key what may have been published while nobody listened."""
        for at in range(0, len(waiting), CHUNK):
            for record in client.mget([_channel(envelope_id) for envelope_id in waiting[at : at + CHUNK]]):
                if record is not None:
                    self._deliver(record)

    def _deliver(self, record: bytes) -> None:
        try:
            meta = json.loads(record)
            envelope_id, state = meta["task_id"], meta["status"]
        except (ValueError, KeyError, TypeError):
            logger.warning("dropped a result record that is not Celery's: %r", record[:200])
            return
        if state == EARLY:
            self._call(self._expected.get(envelope_id, ()), envelope_id, meta)
        if state not in READY:
            return
        with self._lock:
            handlers = self._expected.pop(envelope_id, ())
            self._lost.drop(envelope_id)
        self._call(handlers, envelope_id, meta)

    def _give_up(self, error: BrokerUnavailable) -> None:
        with self._lock:
            expected, self._expected = self._expected, {}
            self._lost = LostMessages(settings().lost_after)
        for envelope_id, handlers in expected.items():
            self._call(handlers, envelope_id, error)

    def _call(self, handlers: Sequence[Handler], envelope_id: str, result: Result) -> None:
        for handler in handlers:
            try:
                handler(envelope_id, result)
            except BaseException:  # One batch's trouble must not silence the others, nor must a callback's exit().
                logger.exception("the result of %s could not be delivered", envelope_id)


def _channel(envelope_id: str) -> str:
    key = results_backend().get_key_for_task(envelope_id)
    return key.decode() if isinstance(key, bytes) else str(key)


def _lost(envelope_id: str) -> EnvelopeLostError:
    return EnvelopeLostError(
        f"envelope {envelope_id} has no result, is on no queue and with no worker: Redis came back without it, the "
        "queue was emptied, or it is in the quarantine; its items may have run, submit them again if that does no harm"
    )


def unavailable(cause: BaseException | None, *, was_connected: bool = False) -> BrokerUnavailable:
    """The error for a broker out of reach: which one, why, and what to do."""
    what, remedy = why_not(cause)
    if was_connected:
        what = f"was lost, and did not come back within {settings().outage_grace:g} s; it {what}"
    elif what == "does not answer":
        what = f"did not answer within {settings().connect_timeout:g} s"
    error = BrokerUnavailable(f"the broker {settings().broker_name} {what} ({cause or 'no answer'}); {remedy}")
    error.__cause__ = cause
    return error


def failure_of(meta: Meta) -> TaskQueueError | None:
    """The error that a worker recorded for an envelope as a whole, if any. Nothing is imported or unpickled for it."""
    if meta["status"] == "SUCCESS":
        return None
    result = meta.get("result") or {}
    if not isinstance(result, Mapping):
        return TaskQueueError(str(result))
    name, parts = str(result.get("exc_type", "")), result.get("exc_message") or ""
    text = " ".join(map(str, parts)) if isinstance(parts, list | tuple) else str(parts)
    if meta["status"] == "REVOKED":
        return CancelledBatchError(f"the envelope was revoked before it ran: {text or 'no reason is given'}")
    kind = getattr(errors, name, None) if result.get("exc_module") == errors.__name__ else None
    if isinstance(kind, type) and issubclass(kind, TaskQueueError):
        return kind(text)
    if name in ("TimeLimitExceeded", "SoftTimeLimitExceeded"):
        return ItemTimeoutError(f"the envelope ran longer than the deployment's time limit ({text} s)")
    return TaskQueueError(f"{name}: {text}")


def inbox() -> Inbox:
    """The inbox of this process."""
    return part(Inbox)
