"""One publisher thread per process: envelopes of all batches leave through it, many in one round trip.

A failed flush leaves it uncertain what has arrived. Ids are fixed before sending, so the same messages are sent again
after reconnecting, and a worker that receives one twice answers for it once.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakSet

import redis
from celery import signals
from kombu.exceptions import KombuError, OperationalError
from kombu.serialization import dumps as serialize

from graft.config.deployment import app, existing, part, settings
from graft.config.redis_client import connect
from graft.config.transport.channel import Channel
from graft.tasks.callables import function_store
from graft.tasks.errors import BrokerUnavailable
from graft.tasks.messages import payloads
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.results.subscriber import inbox, unavailable
from graft.tasks.sending import progress
from graft.tasks.sending.batch_sender import Feeder
from graft.tasks.sending.in_flight import Parcel

logger = logging.getLogger(__name__)

CONNECTION_ERRORS = (redis.RedisError, OperationalError, KombuError, OSError)


class Publisher:
    """Sends what the feeders cut, for as long as the process lives."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._woken: dict[Feeder, None] = {}
        self._feeders: WeakSet[Feeder] = WeakSet()
        self._thread: threading.Thread | None = None
        self._producer: Any = None
        self._was_connected = False
        self._client: Any = None

    def wake(self, feeder: Feeder) -> None:
        """*feeder* may have something to send. Returns at once."""
        if feeder in self._woken:
            return  # It will be looked at after this moment: what the caller has added before is seen.
        with self._changed:
            self._feeders.add(feeder)
            progress.watch(feeder)
            self._woken[feeder] = None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="graft-publisher", daemon=True)
                self._thread.start()
            self._changed.notify()

    def name_the_unsent(self) -> None:
        """A batch lives with its caller; what its caller leaves behind unsent is said, not passed over."""
        with self._changed:
            for feeder in self._feeders:
                if feeder.unsent and not feeder.batch.done():
                    name = feeder.order.function.name
                    logger.warning(
                        "%d items of a batch of %s were not sent when the process ended", feeder.unsent, name
                    )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._woken:
                    self._changed.wait()
                feeders = list(self._woken)
                self._woken.clear()
            try:
                self._serve(feeders)
            except Exception as error:  # A fault of ours must end the calls it concerns, and no others.
                logger.exception("the publisher failed")
                for feeder in feeders:
                    feeder.batch.fail(error)

    def _serve(self, feeders: list[Feeder]) -> None:
        deadline: float | None = None
        parcels: list[Parcel] = []
        pending = feeders
        wait = 0.05
        while pending or parcels:
            try:
                inbox().open()
                client = self._connect()
                parcels += self._cut(pending, client)
                pending = []
                self._publish(parcels)
                parcels = []
            except CONNECTION_ERRORS as error:
                self._disconnect()
                now = time.monotonic()
                if deadline is None:
                    grace = settings().outage_grace if self._was_connected else settings().connect_timeout
                    waited = isinstance(error, BrokerUnavailable) and not self._was_connected
                    deadline = now if waited else now + grace
                if now >= deadline:
                    self._give_up(pending, parcels, error)
                    return
                time.sleep(wait)
                wait = min(2 * wait, 1.0)
        for feeder in feeders:
            if feeder.is_finished:
                self._finish(feeder)

    def _cut(self, feeders: list[Feeder], client: Any) -> list[Parcel]:
        parcels: list[Parcel] = []
        for feeder in feeders:
            try:
                feeder.settle_cancel()
                cut = feeder.cut_again(client)
                if not feeder.is_finished:
                    cut += feeder.cut(client)
            except CONNECTION_ERRORS:
                raise
            except Exception as error:  # What one batch holds must not keep the others from being sent.
                feeder.batch.fail(error)
                continue
            for parcel in cut:
                inbox().expect(parcel.id, self._handler(feeder))
            parcels += cut
        return parcels

    def _handler(self, feeder: Feeder) -> Callable[[str, Mapping[str, Any] | BaseException], None]:
        def handle(envelope_id: str, answer: Mapping[str, Any] | BaseException) -> None:
            children = feeder.answered(envelope_id, answer, self._answers())
            for child in children:
                inbox().expect(child, handle)
            if children:
                inbox().look_up(children, self._answers())

        return handle

    def _answers(self) -> Any:
        if self._client is None:
            self._client = connect(client_name="graft-publisher")
        return self._client

    def _connect(self) -> Any:
        client = self._answers()
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

    def _publish(self, parcels: list[Parcel]) -> None:
        if not parcels:
            return
        for parcel in parcels:
            if parcel.body is not None:
                payloads.store(parcel.id, parcel.body, self._answers())
        channel = self._producer.channel
        if isinstance(channel, Channel) and not _is_observed():
            channel.push((parcel.queue, _rendered(parcel, channel)) for parcel in parcels)
            return
        with self._producer.batch() as batch:
            for parcel in parcels:
                app().amqp.send_task_message(
                    self._producer, parcel.task, _message(parcel), queue=parcel.queue, priority=parcel.priority,
                    declare=[], retry=False, headers={SENT_AT: time.time()},
                )  # fmt: skip
            batch.flush()

    def _give_up(self, feeders: list[Feeder], parcels: list[Parcel], cause: BaseException) -> None:
        error = cause
        if not isinstance(error, BrokerUnavailable):  # From the inbox, which has waited already.
            error = unavailable(cause, was_connected=self._was_connected)
        for feeder in {*feeders, *(parcel.feeder for parcel in parcels)}:
            feeder.source.close()
            feeder.batch.fail(error)
        for parcel in parcels:
            inbox().forget(parcel.id)

    def _finish(self, feeder: Feeder) -> None:
        """Everything has been sent: leave the group's record behind, so that others can find the batch by its id."""
        try:
            feeder.remember_pace(self._answers())
            if feeder.sent_ids and not feeder.batch.reduced:  # A saved group makes Celery join a chord by polling.
                save_group(feeder.batch.id, feeder.sent_ids, self._answers())
        except CONNECTION_ERRORS as error:
            logger.warning("the record of batch %s could not be written: %s", feeder.batch.id, error)


def save_group(batch_id: str, envelope_ids: list[str], client: Any) -> None:
    """Record the batch as a Celery group: ``GroupResult.restore(batch_id)`` finds it.

    Written as Celery writes it, without its result objects, each of which would subscribe and unsubscribe on its own.
    """
    record = {"result": ((batch_id, None), [((envelope_id, None), None) for envelope_id in envelope_ids])}
    key = app().backend.get_key_for_group(batch_id)
    client.set(key, app().backend.encode(record), ex=int(settings().result_ttl))


class _Terms(NamedTuple):
    """What Celery's configuration says of every message."""

    serializer: str
    delivery_mode: Any
    announces: bool


def _read_terms() -> _Terms:
    conf = app().conf
    return _Terms(conf.task_serializer, conf.task_default_delivery_mode, bool(conf.task_send_sent_event))


def _terms() -> _Terms:
    """Read once: each access to Celery's configuration costs as much as rendering half a message."""
    return part(_read_terms)


def _message(parcel: Parcel) -> Any:
    return app().amqp.as_task_v2(
        parcel.id,
        parcel.task,
        args=parcel.args,
        kwargs={},
        group_id=parcel.group,
        group_index=parcel.index,
        root_id=parcel.group,
        chord=parcel.chord,
        argsrepr=f"({parcel.label})",
        kwargsrepr="{}",
        create_sent_event=_terms().announces,
    )


def _is_observed() -> bool:
    """Whether somebody wants to see each message, or to change it, before it leaves."""
    watched = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    return _terms().announces or any(signal.receivers for signal in watched)


def _rendered(parcel: Parcel, channel: Any) -> dict[str, Any]:
    """The message as Celery and kombu would send it, without what they do around each."""
    headers, properties, body, _ = _message(parcel)
    terms = _terms()
    content_type, encoding, payload = serialize(body, serializer=terms.serializer)
    properties["delivery_mode"] = terms.delivery_mode
    headers[SENT_AT] = time.time()
    message: dict[str, Any] = channel.prepare_message(
        payload, priority=parcel.priority, content_type=content_type, content_encoding=encoding, headers=headers,
        properties={**properties, "priority": parcel.priority},
    )  # fmt: skip
    return message


def publisher() -> Publisher:
    """This process's publisher."""
    return part(Publisher)


@atexit.register
def _name_the_unsent() -> None:
    if (one := existing(Publisher)) is not None:
        one.name_the_unsent()
