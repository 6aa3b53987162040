"""The hardened Redis transport, for clients and workers alike: no message and no outage ends a process.

It differs from kombu's in what happens when something goes wrong:

- a message that cannot be understood is kept in the quarantine, with a reason, instead of ending its reader;
- what Redis could not be told (an acknowledgement, a message popped but not recorded) is owed, and paid before the
  next message is fetched;
- closing succeeds without Redis, and on request leaves running work alone instead of giving it to a second worker;
- after a restart of Redis nothing is taken for abandoned before its owner had time to report.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import bz2
import json
import logging
import lzma
import os
import ssl
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty
from types import ModuleType
from typing import Any, Final, NamedTuple

import celery
import kombu
import kombu.transport.redis
import kombu.transport.virtual
import redis
from kombu.connection import resolve_aliases
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from kombu.utils.uuid import uuid
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

logger = logging.getLogger(__name__)

# kombu annotates a part of its functions, which is worse than none.
stock: Any = kombu.transport.redis
virtual: Any = kombu.transport.virtual

QUARANTINE_KEY: Final = "graft:quarantine"
QUARANTINE_COUNTS_KEY: Final = "graft:quarantine:counts"
QUARANTINE_LENGTH: Final = 500
QUARANTINE_BYTES: Final = 256 << 10  # Of one message; the rest is cut off, its length is kept.
MESSAGE_LIMIT: Final = 16 << 20  # Bytes on the wire, and after decompression; the option "message_limit" changes it.

_SCHEMES: Final = (
    ("redis://", "graft://"),
    ("rediss://", "grafts://"),
    ("redis+socket://", "graft+socket://"),
    ("socket://", "graft+socket://"),
    ("unix://", "graft+socket://"),
)
_LOST: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
# kombu's other compressions cannot stop at a limit.
_DECOMPRESSORS: Final[dict[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class UnknownVersionError(RuntimeError):
    """Celery or kombu lacks a private name that the message path leans on."""


def require(owner: type | ModuleType, *names: str) -> None:
    """Refuse to start on a Celery or kombu whose *owner* lacks one of *names*."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise UnknownVersionError(
            f"{owner!r} has no {', '.join(missing)}: celery {celery.__version__} with kombu {kombu.__version__} is not "
            "known to us; install celery==5.7.0 kombu==5.7.0 redis==8.1.0, or teach config/transport.py, "
            "workers/consumer.py and workers/lease.py the new version"
        )


class BadMessage(ValueError):
    """A message that cannot be delivered; *reason* is the code it is quarantined under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(raw: bytes, limit: int) -> dict[str, Any]:
    """The message in *raw*, fit for delivery; raises BadMessage when it is not."""
    if len(raw) > limit:
        raise BadMessage("too_large", f"{len(raw)} bytes, the limit is {limit}")
    try:
        message = loads(bytes_to_str(raw))
    except Exception as error:
        raise BadMessage("malformed_json", repr(error)) from error
    return checked(message, limit)


def checked(message: Any, limit: int) -> dict[str, Any]:
    """*message* with everything in place that kombu looks up unasked; raises BadMessage when something is not."""
    match message:
        case {
            "properties": {"delivery_tag": str(), "delivery_info": {"exchange": str(), "routing_key": str()}},
            "content-type": str(),
        } if isinstance(message.get("headers"), dict | None):
            envelope: dict[str, Any] = message
        case _:
            raise BadMessage(
                "malformed_envelope", "properties, delivery_info, headers or content-type is not as kombu sends it"
            )
    properties, headers = envelope["properties"], envelope.get("headers") or {}
    body, encoding = envelope.get("body"), properties.get("body_encoding")
    if not isinstance(body, str) or not body or encoding not in ("base64", "utf-8", None):
        raise BadMessage("malformed_body", f"a {type(body).__name__} with the encoding {encoding!r}")
    if headers.get("compression"):
        _check_unpacked_size(headers["compression"], body, encoding, limit)
    priority = properties.get("priority", 0)
    if not isinstance(priority, int) or not 0 <= priority <= 9:
        properties["priority"] = min(max(priority, 0), 9) if isinstance(priority, int) else 0
        logger.warning("priority %r of a message became %d", priority, properties["priority"])
    return envelope


def _check_unpacked_size(compression: Any, body: str, encoding: str | None, limit: int) -> None:
    if not isinstance(compression, str) or compression not in _DECOMPRESSORS:
        raise BadMessage("malformed_headers", f"compression {compression!r} is not one of {', '.join(_DECOMPRESSORS)}")
    try:
        packed = base64.b64decode(body) if encoding == "base64" else body.encode()
        unpacked = _DECOMPRESSORS[compression]().decompress(packed, limit + 1)
    except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise BadMessage("malformed_body", repr(error)) from error
    if len(unpacked) > limit:
        raise BadMessage("too_large", f"{len(packed)} bytes unpack to more than {limit}")


class Popped(NamedTuple):
    """A message that left its list and could not be delivered, with the tag it may have been recorded under."""

    key: str
    raw: bytes
    tag: str


@dataclass
class Owed:
    """What Redis has still to be told; outlives the channel on which telling it failed."""

    settled: dict[str, bool] = field(default_factory=dict)  # Delivery tag -> does the message go back on its queue?
    popped: deque[Popped] = field(default_factory=deque)


_OWED: Final[defaultdict[tuple[Any, ...], Owed]] = defaultdict(Owed)  # By address of the broker.
os.register_at_fork(after_in_child=_OWED.clear)  # A pool process must not pay the debts of its worker again.


@atexit.register
def _name_the_lost() -> None:
    for owed in _OWED.values():
        for popped in owed.popped:
            raw = base64.b64encode(popped.raw).decode()
            logger.critical("a message from %s could not be put back before the process ended: %s", popped.key, raw)


class QoS(stock.QoS):
    """Keeps the record of delivered messages true when Redis is away or full."""

    _owners_could_report = False

    def outstanding(self) -> dict[str, Any]:
        """The messages that this process was given and has not settled, by delivery tag."""
        return {tag: message for tag, message in tuple(self._delivered.items()) if tag not in self._dirty}

    def ack(self, delivery_tag: str) -> None:
        self._settle(delivery_tag, requeue=False)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._settle(delivery_tag, requeue)

    def _settle(self, delivery_tag: str, requeue: bool) -> None:
        try:
            self.tell(delivery_tag, requeue)
        except (*_LOST, RedisError, AttributeError) as error:  # AttributeError: closed, without a pool left.
            logger.warning("Redis could not be told that %s is settled; it will be: %r", delivery_tag, error)
            self.channel.owed.settled[delivery_tag] = requeue
        self.forget(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Give up the place that the message takes here; Redis is not told."""
        virtual.QoS.ack(self, delivery_tag)

    def tell(self, delivery_tag: str, requeue: bool) -> None:
        """Have Redis forget the message, or put it back on its queue."""
        if requeue:
            self.restore_by_tag(delivery_tag, leftmost=True)
            return
        with self.channel.conn_or_acquire() as client:
            # Redis 7 refuses every MULTI at maxmemory, these two commands never. An index entry without a record is
            # swept up; a record without an index entry would stay for ever.
            pipe = client.pipeline(transaction=False)
            pipe.hdel(self.unacked_key, delivery_tag).zrem(self.unacked_index_key, delivery_tag).execute()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give abandoned messages to others, unless Redis came up too recently for their owners to have reported."""
        if not self._owners_could_report:
            with self.channel.conn_or_acquire() as client, suppress(ResponseError):  # INFO may be forbidden.
                if client.info("server")["uptime_in_seconds"] < self.visibility_timeout:
                    return
            self._owners_could_report = True
        super().restore_visible(*args, **kwargs)

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # A record that kombu did not write would stop every sweep at this place.
            with self.channel.conn_or_acquire(client) as connected:
                raw = connected.hget(self.unacked_key, tag) or b""
            self.channel.quarantine(raw, self.unacked_key, "malformed_record", repr(error))
            self.tell(bytes_to_str(tag), requeue=False)


class Channel(stock.Channel):
    """A Redis channel that survives its messages and its server."""

    QoS = QoS
    message_limit = MESSAGE_LIMIT
    from_transport_options = (*stock.Channel.from_transport_options, "message_limit")
    _spare_pool: Any = None
    _pay_again_at = 0.0

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        address = connection.client
        self.owed = _OWED[address.hostname, address.port, address.virtual_host]
        super().__init__(connection, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._has_paid():
            super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            reply = self._reply_to_brpop(options)
            if not reply:
                raise Empty
            key = bytes_to_str(reply[0])
            queue = key.rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._take(Popped(key, reply[1], uuid()), queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _reply_to_brpop(self, options: dict[str, Any]) -> Any:
        try:
            return self.client.parse_response(self.client.connection, "BRPOP", **options)
        except (*self.connection_errors, RedisError) as error:
            self.client.connection.disconnect()
            if isinstance(error, self.connection_errors):
                raise
            # Such as WRONGTYPE or UNBLOCKED: another try may succeed, and the end of the worker helps nobody.
            raise redis.ConnectionError(f"BRPOP was refused: {error}") from error

    def _take(self, popped: Popped, queue: str) -> None:
        try:
            message = decode(popped.raw, self.message_limit)
            # A copied message carries the tag of its original, and settling one would drop the record of the other.
            message["properties"]["delivery_tag"] = popped.tag
            self.connection._deliver(message, queue)
        except RedisError as error:
            logger.warning("a message from %s goes back, Redis failed while it was delivered: %r", queue, error)
            self._owe(popped)
        except Exception as error:
            reason = error.reason if isinstance(error, BadMessage) else "undeliverable"
            if isinstance(error, binascii.Error):
                reason = "malformed_body"
            self._refuse(popped, queue, reason, repr(error))

    def _refuse(self, popped: Popped, queue: str, reason: str, detail: str) -> None:
        try:
            self.quarantine(popped.raw, queue, reason, detail)
        except RedisError:
            self._owe(popped)
        else:
            if popped.tag in self.qos.outstanding():
                self.qos.reject(popped.tag)

    def _owe(self, popped: Popped) -> None:
        if popped.tag in self.qos._dirty:
            return  # Settled before Redis failed at something else.
        if popped.tag in self.qos._delivered:
            self.qos.forget(popped.tag)
        self.owed.popped.append(popped)

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except (Empty, *_LOST):
            raise
        except RedisError as error:
            self._in_listen = None
            raise redis.ConnectionError(f"the subscription was refused: {error}") from error
        except Exception as error:
            logger.warning("dropped a broadcast message: %.500r", error)
            return None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        try:
            return bool(super()._deliver_fanout_message(checked(message, self.message_limit), exchange))
        except RedisError:
            raise
        except Exception as error:
            logger.warning("dropped a broadcast message on %.100s: %.500r", exchange, error)
            return False

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        size = len(message["body"]) * 4 // 3
        if size > self.message_limit:
            raise ValueError(
                f"a message of {size} bytes exceeds message_limit={self.message_limit} of the transport, which its "
                "reader enforces; send smaller batches, or a reference to the data"
            )
        return super().basic_publish(message, exchange, routing_key, **kwargs)

    def quarantine(self, raw: bytes, queue: str, reason: str, detail: str) -> None:
        """Keep *raw* for people to look at. Raises RedisError when Redis cannot; then it is not kept."""
        logger.error("quarantined a message of %d bytes from %s: %s (%.500s)", len(raw), queue, reason, detail)
        entry = {
            "reason": reason,
            "detail": detail[:500],
            "queue": queue,
            "first_seen": time.time(),
            "bytes": len(raw),
            "raw": base64.b64encode(raw[:QUARANTINE_BYTES]).decode(),
        }
        with self.conn_or_acquire() as client:
            pipe = client.pipeline(transaction=False)
            pipe.lpush(QUARANTINE_KEY, json.dumps(entry))
            # kombu's prefixing client knows LPUSH, but neither of these.
            pipe.ltrim(self.global_keyprefix + QUARANTINE_KEY, 0, QUARANTINE_LENGTH - 1)
            pipe.hincrby(self.global_keyprefix + QUARANTINE_COUNTS_KEY, reason, 1)
            pipe.execute()

    def renew(self, tags: Iterable[str]) -> None:
        """Tell Redis that this process still owns *tags*; those that were settled meanwhile stay settled."""
        now = time.time()
        scores = dict.fromkeys(tags, now)
        if scores:
            with self.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, scores, xx=True)

    def pay(self) -> None:
        """Tell Redis everything that it is owed; raises RedisError when it still cannot be told."""
        settled, popped = self.owed.settled, self.owed.popped
        while settled:
            tag, requeue = settled.popitem()
            try:
                self.qos.tell(tag, requeue)
            except BaseException:
                settled[tag] = requeue
                raise
        while popped:
            message = popped.popleft()
            try:
                self._put_back(message)
            except BaseException:
                popped.appendleft(message)
                raise

    def _put_back(self, popped: Popped) -> None:
        # Recording may have succeeded although its reply was lost.
        with self.conn_or_acquire() as client:
            pipe = client.pipeline()
            pipe.hdel(self.unacked_key, popped.tag).zrem(self.unacked_index_key, popped.tag)
            pipe.rpush(popped.key, popped.raw).execute()

    def _has_paid(self) -> bool:
        if not self.owed.settled and not self.owed.popped:
            return True
        if time.monotonic() >= self._pay_again_at:
            try:
                self.pay()
            except _LOST:
                raise
            except RedisError as error:
                logger.warning("Redis refuses what it is owed, trying again in a second: %r", error)
                self._pay_again_at = time.monotonic() + 1
        return not self.owed.popped  # What cannot be put back could not be recorded either.

    def _do_restore_message(
        self, payload: dict[str, Any], exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        if self._lookup(exchange, routing_key):
            super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)
        else:
            self.quarantine(json.dumps(payload).encode(), routing_key, "unroutable", f"{exchange!r} leads nowhere")

    def keep_messages(self) -> None:
        """Prepare for a close that gives nothing back; acknowledgements go through a pool of their own afterwards."""
        self.do_restore = False
        self._spare_pool = self._get_pool()

    def adopt(self, messages: dict[str, Any]) -> None:
        """Go on with the messages of a channel that was closed: they are settled, renewed and counted here."""
        for tag, message in messages.items():
            message.channel = self
            if not message.acknowledged:
                self.qos._quick_append(tag, message)

    def close(self) -> None:
        if self.owed.popped:
            with suppress(*_LOST, RedisError, AttributeError):
                self.pay()
        for _ in range(2):  # The first failure may be the one broken connection, the second is the outage.
            try:
                super().close()
                break
            except (*_LOST, RedisError, LookupError, AttributeError, TypeError) as error:
                logger.debug("closing a channel without Redis: %r", error)
                self._in_poll = None
                self.auto_delete_queues.clear()
        else:
            self._abandon()
        self._pool = self._spare_pool

    def _abandon(self) -> None:
        self.closed = True
        for step in (lambda: self.connection.cycle.discard(self), self._disconnect_pools, self._close_clients):
            with suppress(*_LOST, RedisError, AttributeError):
                step()
        if self.connection is not None:
            self.connection.close_channel(self)


class Transport(stock.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel
    # A full or demoted server is an outage like any other: wait for it, do not end.
    connection_errors = (*stock.Transport.connection_errors, OutOfMemoryError, ReadOnlyError, MasterDownError)


class TlsTransport(Transport):
    """The same over TLS; kombu verifies no certificate when ``rediss://`` comes without options, this one does."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not isinstance(client.ssl, dict):
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


def register() -> None:
    """Make the transport known to kombu, under the schemes that `transport_url` gives out."""
    require(stock.Channel, "_brpop_start", "_brpop_read", "_receive_one", "_deliver_fanout_message", "_in_poll")
    require(stock.Channel, "_do_restore_message", "_flush_brpop_reauth", "_get_pool", "_disconnect_pools", "_pool")
    require(stock.Channel, "_close_clients", "_lookup", "conn_or_acquire", "do_restore", "from_transport_options")
    require(stock.QoS, "restore_visible", "restore_by_tag", "unacked_key", "unacked_index_key", "_delivered", "_dirty")
    require(virtual.Transport, "_deliver", "close_channel", "connection_errors")
    TRANSPORT_ALIASES["graft"] = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES["grafts"] = f"{__name__}:{TlsTransport.__name__}"
    # Addresses are shown, to people and to Flower, in the form in which they were given.
    resolve_aliases.update(graft="redis", grafts="rediss")


def transport_url(url: str) -> str:
    """*url* with the scheme of the hardened transport; several addresses may be separated by ``;``.

    ``redis://``, ``rediss://`` and the spellings of a Unix socket (``redis+socket://``, ``socket://``, ``unix://``)
    are mapped; anything else, ``sentinel://`` among it, comes back as it is and is kombu's own affair.
    """
    return ";".join(_hardened(part) for part in url.split(";"))


def _hardened(url: str) -> str:
    for scheme, ours in _SCHEMES:
        if url.startswith(scheme):
            url = ours + url.removeprefix(scheme)
            # redis-py and kombu disagree on the name of the database in a socket's address.
            return url.replace("?db=", "?virtual_host=").replace("&db=", "&virtual_host=") if "+socket" in ours else url
    return url
