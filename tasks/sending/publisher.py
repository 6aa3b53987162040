"""One publisher thread per process: envelopes of all batches leave through it, many in one round trip.

A failed flush leaves it uncertain what has arrived. Ids are fixed before sending, so the same messages are sent again
after reconnecting, and a worker that receives one twice answers for it once.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple
from weakref import WeakSet

import redis
from kombu.exceptions import KombuError, OperationalError
from kombu.serialization import dumps as serialize

from graft.config import redis_clock
from graft.config.deployment import app, existing, part, settings
from graft.config.redis_client import connect
from graft.config.transport.channel import Channel
from graft.config.transport.fence import FencedOffError
from graft.config.transport.sending_channel import Outgoing
from graft.config.transport.unique import HEADER, HeldError
from graft.tasks.callables import function_store
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.queues import unique
from graft.tasks.results.backend import results_backend
from graft.tasks.results.subscriber import inbox, unavailable
from graft.tasks.sending import progress
from graft.tasks.sending.batch_sender import BatchSender
from graft.tasks.sending.in_flight import OutgoingMessage

logger = logging.getLogger(__name__)

CONNECTION_ERRORS = (redis.RedisError, OperationalError, KombuError, OSError)


class Publisher:
    """Sends what the senders cut, for as long as the process lives."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._woken: dict[BatchSender[Any], None] = {}
        self._senders: WeakSet[BatchSender[Any]] = WeakSet()
        self._thread: threading.Thread | None = None
        self._producer: Any = None
        self._was_connected = False
        self._client: Any = None

    def start(self, sender: BatchSender[Any]) -> None:
        """Send a batch, and have others see how far it has come. Returns at once."""
        progress.watch(sender)
        self.wake(sender)

    def wake(self, sender: BatchSender[Any]) -> None:
        """*sender* may have something to send. Returns at once."""
        if sender in self._woken:
            return  # It will be looked at after this moment: what the caller has added before is seen.
        with self._changed:
            self._senders.add(sender)
            self._woken[sender] = None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="graft-publisher", daemon=True)
                self._thread.start()
            self._changed.notify()

    def name_the_unsent(self) -> None:
        """A batch lives with its caller; what its caller leaves behind unsent is said, not passed over."""
        with self._changed:
            for sender in self._senders:
                if sender.unsent and not sender.receiver.done():
                    name = sender.options.function.name
                    logger.warning(
                        "%d items of a batch of %s were not sent when the process ended", sender.unsent, name
                    )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._woken:
                    self._changed.wait()
                senders = list(self._woken)
                self._woken.clear()
            try:
                self._serve(senders)
            except BaseException as error:  # A fault of ours must end the calls it concerns, and no others.
                logger.exception("the publisher failed")
                for sender in senders:
                    sender.fail(error)

    def _serve(self, senders: list[BatchSender[Any]]) -> None:
        deadline: float | None = None
        messages: list[OutgoingMessage] = []
        pending = senders
        wait = 0.05
        while pending or messages:
            try:
                inbox().open()
                client = self._connect()
                self._cut(pending, client, messages)
                pending = []
                self._publish(messages)
                messages = []
            except CONNECTION_ERRORS as error:
                self._disconnect()
                now = time.monotonic()
                if deadline is None:
                    grace = settings().outage_grace if self._was_connected else settings().connect_timeout
                    waited = isinstance(error, BrokerUnavailable) and not self._was_connected
                    deadline = now if waited else now + grace
                if now >= deadline:
                    with self._changed:  # What has come meanwhile would only wait as long for the same broker.
                        late = [sender for sender in self._woken if sender not in senders]
                        self._woken.clear()
                    self._give_up([*senders, *late], [*pending, *late], messages, error)
                    return
                time.sleep(wait)
                wait = min(2 * wait, 1.0)
        for sender in senders:
            if sender.is_finished:
                self._finish(sender)

    def _cut(self, senders: list[BatchSender[Any]], client: Any, messages: list[OutgoingMessage]) -> None:
        """Add to *messages* what may be sent now; those that were cut when Redis goes away are there by then."""
        for sender in senders:
            try:
                sender.carry_out_cancel()
                if isinstance(channel := self._producer.channel, Channel):
                    sender.spread(channel)
                cut = sender.cut_again(client)
                if not sender.is_finished:
                    cut += sender.cut(client)
            except CONNECTION_ERRORS:
                raise
            except BaseException as error:  # What one batch holds must not keep the others from being sent.
                sender.fail(error)
                continue
            for message in cut:
                inbox().expect(message.id, sender.answered)
            messages += sender.pass_on(cut)

    def _own_client(self) -> Any:
        if self._client is None:
            self._client = connect(client_name="graft-publisher")
        return self._client

    def _connect(self) -> Any:
        client = self._own_client()
        if self._producer is None:
            client.ping()
            function_store.forget_stored()
            connection = app().connection_for_write()
            self._producer = app().amqp.Producer(connection.channel(), auto_declare=False)
            self._was_connected = True
        return client

    def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.channel.connection.client.close()
            except Exception as error:  # It is broken already; what matters is that it is let go.
                logger.debug("closing a lost connection: %r", error)

    def _publish(self, messages: list[OutgoingMessage]) -> None:
        if not messages:
            return
        for message in messages:
            if message.body is not None:
                payloads.store(message.id, message.body, self._own_client())
        channel = self._producer.channel
        messages = self._publish_unique(self._publish_fenced(messages, channel))
        if not isinstance(channel, Channel):
            with self._producer.batch() as batch:
                for message in messages:
                    self._send_observed(message)
                batch.flush()
        elif app().amqp.is_observed():
            channel.push(self._observed(messages, channel))
        else:
            channel.push(_rendered(message, channel) for message in messages)

    def _observed(self, messages: list[OutgoingMessage], channel: Channel) -> list[Outgoing]:
        ready: list[Outgoing] = []
        channel.burst = gathered = _Gathered()
        try:
            for message in messages:
                self._send_observed(message)
                ready += [Outgoing(queue, sealed, message.flow, message.seconds) for queue, sealed in gathered]
                gathered.clear()
        finally:
            channel.burst = None
        return ready

    def _send_observed(self, message: OutgoingMessage) -> None:
        """Send *message* as Celery does, so that whoever listens sees it."""
        app().amqp.send_task_message(
            self._producer, message.task, _message(message), queue=message.queue, priority=message.priority,
            declare=[], retry=False,
            headers={SENT_AT: redis_clock.now()} | ({HEADER: message.unique.header} if message.unique else {}),
        )  # fmt: skip

    def _publish_fenced(self, messages: list[OutgoingMessage], channel: Any) -> list[OutgoingMessage]:
        """Send those of *messages* that need a lease; the others. Nobody observes how a worker feeds."""
        if not any(message.fence for message in messages):
            return messages
        for fence in {message.fence for message in messages if message.fence}:
            ours = [message for message in messages if message.fence == fence]
            try:
                channel.push([_rendered(message, channel) for message in ours], fence)
            except FencedOffError as error:  # Whoever feeds by now knows of them, and sends them.
                logger.warning("%d envelopes were not sent: %s", len(ours), error)
        return [message for message in messages if message.fence is None]

    def _publish_unique(self, messages: list[OutgoingMessage]) -> list[OutgoingMessage]:
        """Send those of *messages* of which there is one at a time, each in the step that decides; the others."""
        for message in messages:
            while message.unique is not None and message.on_held is not None:
                try:
                    self._send_observed(message)
                except HeldError as held:
                    if unique.is_lost(held):
                        continue
                    message.on_held(held)
                break
        return [message for message in messages if message.unique is None]

    def _give_up(
        self,
        senders: list[BatchSender[Any]],
        pending: list[BatchSender[Any]],
        messages: list[OutgoingMessage],
        cause: BaseException,
    ) -> None:
        """Fail those of *senders* that were not asked for their messages, or whose *messages* were not sent."""
        error = cause
        if not isinstance(error, BrokerUnavailable):  # From the inbox, which has waited already.
            error = unavailable(cause, was_connected=self._was_connected)
        unsent = {message.group for message in messages}
        for sender in senders:
            if sender in pending or sender.receiver.id in unsent:
                sender.fail(error)
        for message in messages:
            inbox().forget(message.id)

    def _finish(self, sender: BatchSender[Any]) -> None:
        """Everything has been sent: leave the group's record behind, so that others can find the batch by its id."""
        try:
            sender.remember_pace(self._own_client())
            if sender.sent_ids and sender.chord is None:  # A saved group makes Celery join a chord by polling.
                save_group(sender.receiver.id, sender.sent_ids, self._own_client())
        except CONNECTION_ERRORS as error:
            logger.warning("the record of batch %s could not be written: %s", sender.receiver.id, error)


class _Gathered(list[tuple[str, dict[str, Any]]]):
    """Messages, with their queues."""

    def add(self, queue: str, message: dict[str, Any]) -> None:
        self.append((queue, message))

    def result(self, task_id: str) -> None:
        """Nobody asks for one."""


def save_group(batch_id: str, envelope_ids: list[str], client: Any) -> None:
    """Record the batch as a Celery group: ``GroupResult.restore(batch_id)`` finds it.

    Written as Celery writes it, without its result objects, each of which would subscribe and unsubscribe on its own.
    """
    record = {"result": ((batch_id, None), [((envelope_id, None), None) for envelope_id in envelope_ids])}
    key = results_backend().get_key_for_group(batch_id)
    client.set(key, results_backend().encode(record), ex=int(settings().result_ttl))


class _MessageDefaults(NamedTuple):
    """Celery's configuration of every message."""

    serializer: str
    delivery_mode: Any
    announces: bool


def _read_defaults() -> _MessageDefaults:
    conf = app().conf
    return _MessageDefaults(conf.task_serializer, conf.task_default_delivery_mode, bool(conf.task_send_sent_event))


def _defaults() -> _MessageDefaults:
    """Read once: each access to Celery's configuration costs as much as rendering half a message."""
    return part(_read_defaults)


def _message(message: OutgoingMessage) -> Any:
    return app().amqp.as_task_v2(
        message.id,
        message.task,
        args=message.args,
        kwargs={},
        eta=None if message.due is None else datetime.fromtimestamp(message.due, UTC),
        group_id=message.group,
        group_index=message.index,
        root_id=message.group,
        chord=message.chord,
        argsrepr=f"({message.label})",
        kwargsrepr="{}",
        create_sent_event=_defaults().announces,
    )


def _rendered(message: OutgoingMessage, channel: Channel) -> Outgoing:
    """The message as Celery and kombu would send it, without what they do around each."""
    headers, properties, body, _ = _message(message)
    terms = _defaults()
    content_type, encoding, payload = serialize(body, serializer=terms.serializer)
    properties["delivery_mode"] = terms.delivery_mode
    headers[SENT_AT] = redis_clock.now()
    rendered: dict[str, Any] = channel.prepare_message(
        payload, priority=message.priority, content_type=content_type, content_encoding=encoding, headers=headers,
        properties={**properties, "priority": message.priority},
    )  # fmt: skip
    channel.seal(message.queue, rendered)
    return Outgoing(message.queue, rendered, message.flow, message.seconds)


def publisher() -> Publisher:
    """The publisher of this process."""
    return part(Publisher)


@atexit.register
def _name_the_unsent() -> None:
    if (one := existing(Publisher)) is not None:
        one.name_the_unsent()
