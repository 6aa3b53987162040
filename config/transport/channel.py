"""The channel of the hardened transport: no message and no outage ends a process that reads or sends through it.

It differs from kombu's in what happens when something goes wrong:

- a message that cannot be understood is kept in the quarantine, with a reason, instead of ending its reader;
- a message is taken and recorded in one step, so that no crash comes in between (kombu: BRPOP, then a second trip);
- what Redis could not be told (an acknowledgement) is owed, and paid before the next message is fetched;
- closing succeeds without Redis, and on request leaves running work alone instead of giving it to a second worker;
- after a restart of Redis nothing is taken for abandoned before its owner had time to report.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import Empty
from typing import Any, Final

import redis
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis.exceptions import RedisError

from graft.config.deployment import part, settings
from graft.config.transport import signing
from graft.config.transport.fetch import Asked, Look
from graft.config.transport.message_validation import MESSAGE_LIMIT, BadMessage, checked, decode
from graft.config.transport.qos import LOST, PendingAcks, QoS, stock

logger = logging.getLogger(__name__)

QUARANTINE_KEY: Final = "graft:quarantine"
QUARANTINE_COUNTS_KEY: Final = "graft:quarantine:counts"
QUARANTINE_LENGTH: Final = 500
QUARANTINE_BYTES: Final = 256 << 10  # Of one message; the rest is cut off, its length is kept.
SIGN_MS: Final = 10_000  # Whoever waits looks again every second, signs or not.


class Channel(stock.Channel):
    """A Redis channel that survives its messages and its server."""

    QoS = QoS
    message_limit = MESSAGE_LIMIT
    most_at_once = 1  # Messages taken by one look, for a pool that runs many at once.
    settling_tasks: frozenset[str] = frozenset()  # Whose runs settle their own messages: telling Redis has time.
    from_transport_options = (*stock.Channel.from_transport_options, "message_limit")
    _spare_pool: Any = None
    _asked: Asked | None = None
    _is_empty = False
    _waits = False
    _most = 1
    _pay_again_at = 0.0
    _pusher: Any = None

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        address = connection.client
        self.owed = part(PendingAcks)[address.hostname, address.port, address.virtual_host]
        self.recorded = ""
        self.acked: list[str] = []  # Redis is told of them with the next look, or soon.
        self._looks: dict[tuple[str, ...], Look] = {}
        super().__init__(connection, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Look for a message; where the last look left none, wait for a sign that one has come before that."""
        if not self._has_paid():
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        room = self.qos.can_consume_max_estimate()
        most = min(self._most, self.most_at_once if room is None else room)
        self._waits = self._is_empty
        commands: list[tuple[Any, ...]] = []
        settled: tuple[str, ...] = ()
        if self._waits:
            wait = self.brpop_timeout if timeout is None else timeout
            commands.append(("BRPOP", *self._prefixed(map(self._sign, queues)), wait or 0))
        elif settled := (*(self._asked.settled if self._asked else ()), *self.acked):  # Also what was not heard.
            self.acked = []
            record, index = self._prefixed([self.unacked_key, self.unacked_index_key])
            commands += [("HDEL", record, *settled), ("ZREM", index, *settled)]
        self._asked = Asked(tuple(uuid() for _ in range(max(1, most))), tuple(queues), settled)
        look = self._look_at(self._asked.queues)
        # Redis runs the second in the instant in which the first ends: no round trip comes in between.
        waiting = connection.pack_commands(commands) if commands else []
        packed = look.packed(time.time(), int(self._waits), *self._asked.tags)
        connection.send_packed_command([b"".join([*waiting, packed])])

    def _look_at(self, queues: tuple[str, ...]) -> Look:
        """How to look at *queues*, in their order: they take turns, so there are as many looks as queues."""
        look = self._looks.get(queues)
        if look is None:
            lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
            keys = self._prefixed([self.unacked_key, self.unacked_index_key, *map(self._sign, queues), *lists])
            look = self._looks[queues] = Look(keys, queues)
        return look

    def _prefixed(self, keys: Iterable[str]) -> list[str]:
        return [self.global_keyprefix + key for key in keys]

    def _sign(self, queue: str) -> str:
        """The list that holds one element for each message that came to *queue*, for those who wait."""
        return f"{queue}{self.sep}sign"

    def _brpop_read(self, **options: Any) -> bool:
        try:
            if self._waits:
                self._reply("BRPOP", options)
            if self._asked and self._asked.settled:
                self._reply("HDEL", options)
                self._reply("ZREM", options)
            more, taken = self._reply("EVAL", options)
            asked, self._asked = self._asked, None
            self._is_empty = not more
            if asked is None or not taken:
                raise Empty
            # A queue that gave many is likely to have more.
            self._most = min(self.most_at_once, 2 * len(taken) + 2)
            for (place, raw), tag in zip(taken, asked.tags, strict=False):
                self._take(raw, tag, asked.queues[place - 1])
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _reply(self, command: str, options: dict[str, Any]) -> Any:
        try:
            return self.client.parse_response(self.client.connection, command, **options)
        except (*self.connection_errors, RedisError) as error:
            self._is_empty = False
            self.client.connection.disconnect()
            if isinstance(error, self.connection_errors):
                raise
            # Such as WRONGTYPE or UNBLOCKED: another try may succeed, and the end of the worker helps nobody.
            raise redis.ConnectionError(f"fetching was refused: {error}") from error

    def _take(self, raw: bytes, tag: str, queue: str) -> None:
        """Deliver a message that has left its list and is recorded under *tag*."""
        self._queue_cycle.rotate(queue)
        self.recorded = tag
        try:
            message = decode(raw, self.message_limit)
            # A copied message carries the tag of its original, and settling one would drop the record of the other.
            message["properties"]["delivery_tag"] = tag
            self.connection._deliver(message, queue)
            if self.recorded == tag:  # Nobody will acknowledge it: the reader asked for messages without.
                self._owe(tag, requeue=False)
                self._has_paid()
        except RedisError as error:
            logger.warning("a message from %s goes back, Redis failed while it was delivered: %r", queue, error)
            self._owe(tag, requeue=True)
        except Exception as error:
            reason = error.reason if isinstance(error, BadMessage) else "undeliverable"
            if isinstance(error, binascii.Error):
                reason = "malformed_body"
            self._refuse(raw, tag, queue, reason, repr(error))

    def _refuse(self, raw: bytes, tag: str, queue: str, reason: str, detail: str) -> None:
        try:
            self.quarantine(raw, queue, reason, detail)
        except RedisError:
            self._owe(tag, requeue=True)
        else:
            self._owe(tag, requeue=False)
            self._has_paid()

    def _owe(self, tag: str, *, requeue: bool) -> None:
        if tag in self.qos._dirty:
            return  # Settled before Redis failed at something else.
        if tag in self.qos._delivered:
            self.qos.forget(tag)
        self.owed[tag] = requeue

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        batch = kwargs.get("_publish_batch")
        super()._put(queue, message, **kwargs)
        if batch is not None:
            batch.add("lpush", self._sign(queue), 1)
            batch.add("pexpire", self._sign(queue), SIGN_MS)
            return
        with self.conn_or_acquire() as client:
            self._give_sign(client.pipeline(transaction=False), queue).execute()

    def _give_sign(self, pipe: Any, queue: str) -> Any:
        pipe.lpush(self._sign(queue), 1)
        pipe.pexpire(self._sign(queue), SIGN_MS)
        return pipe

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except (Empty, *LOST):
            raise
        except RedisError as error:
            self._in_listen = None
            raise redis.ConnectionError(f"the subscription was refused: {error}") from error
        except Exception as error:
            logger.warning("dropped a broadcast message: %.500r", error)
            return None

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        super()._inplace_augment_message(message, exchange, routing_key)
        keys = settings().signing_keys
        if keys and exchange not in signing.UNSIGNED:
            signing.sign(message, signing.place(exchange or "", routing_key or ""), keys)

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        try:
            message = checked(message, self.message_limit)
            if exchange == signing.COMMANDS:
                self._verify_command(message)
            return bool(super()._deliver_fanout_message(message, exchange))
        except RedisError:
            raise
        except Exception as error:
            logger.warning("dropped a broadcast message on %.100s: %.500r", exchange, error)
            return False

    def push(self, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Put *messages* on the queues named with them, in one round trip, as :meth:`basic_publish` does one by one."""
        signs: Counter[str] = Counter()
        commands: list[tuple[Any, ...]] = []
        for queue, message in messages:
            self._refuse_too_large(message)
            self._inplace_augment_message(message, "", queue)
            key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
            commands.append(("LPUSH", *self._prefixed([key]), dumps(message)))
            signs[queue] += 1
        for queue, count in signs.items():
            (sign,) = self._prefixed([self._sign(queue)])
            commands += [("LPUSH", sign, *[1] * count), ("PEXPIRE", sign, SIGN_MS)]
        self._tell(commands)

    def _tell(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """One round trip on a connection kept for it: redis-py's pipeline takes as long again as all the rest."""
        if self._pusher is None:
            self._pusher = self.pool.get_connection()
        connection, refused = self._pusher, []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    connection.read_response()
                except redis.ResponseError as error:  # The other replies are on their way all the same.
                    refused.append(error)
        except BaseException:  # Also an interrupt: what was not read would be taken for the next one's reply.
            connection.disconnect()
            raise
        if refused:
            raise refused[0]

    def _refuse_too_large(self, message: dict[str, Any]) -> None:
        size = len(message["body"]) * 4 // 3
        if size > self.message_limit:
            raise ValueError(
                f"a message of {size} bytes exceeds message_limit={self.message_limit} of the transport, which its "
                "reader enforces; send smaller batches, or a reference to the data"
            )

    def _verify_command(self, message: dict[str, Any]) -> None:
        """Raise BadMessage unless the command changes nothing, or comes from somebody with the deployment's key."""
        config = settings()
        if not config.signing_keys or config.unsigned_messages == "accept" or signing.is_harmless(message):
            return
        info = message["properties"]["delivery_info"]
        place = signing.place(info["exchange"], info["routing_key"])
        flaw = signing.flaw(message, place, config.signing_keys, signing.COMMAND_AGE)
        if flaw:
            raise BadMessage("bad_signature", f"a control command is refused: {flaw}")

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        self._refuse_too_large(message)
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
        if self._asked is not None:  # It may have been taken and wait to be read.
            scores.update(dict.fromkeys(self._asked.tags, now))
        if scores:
            with self.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, scores, xx=True)

    def pay(self) -> None:
        """Tell Redis everything that it is owed; raises RedisError when it still cannot be told."""
        while self.owed:
            tag, requeue = self.owed.popitem()
            try:
                self.qos.tell(tag, requeue)
            except BaseException:
                self.owed[tag] = requeue
                raise

    def _has_paid(self) -> bool:
        if self.owed and time.monotonic() >= self._pay_again_at:
            try:
                self.pay()
            except LOST:
                raise
            except RedisError as error:
                logger.warning("Redis refuses what it is owed, trying again in a second: %r", error)
                self._pay_again_at = time.monotonic() + 1
        return not any(self.owed.values())  # What cannot be put back yet would only be taken again.

    def _do_restore_message(
        self, payload: dict[str, Any], exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        queues = self._lookup(exchange, routing_key)
        if not queues:
            self.quarantine(json.dumps(payload).encode(), routing_key, "unroutable", f"{exchange!r} leads nowhere")
            return
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)
        for queue in queues:
            self._give_sign(pipe, queue)

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
        if self._asked:
            self.acked += self._asked.settled
        self.qos.tell_acked()
        for _ in range(2):  # The first failure may be the one broken connection, the second is the outage.
            try:
                super().close()
                break
            except (*LOST, RedisError, LookupError, AttributeError, TypeError) as error:
                logger.debug("closing a channel without Redis: %r", error)
                self._in_poll = None
                self.auto_delete_queues.clear()
        else:
            self._abandon()
        self._pool = self._spare_pool

    def _abandon(self) -> None:
        self.closed = True
        for step in (lambda: self.connection.cycle.discard(self), self._disconnect_pools, self._close_clients):
            with suppress(*LOST, RedisError, AttributeError):
                step()
        if self.connection is not None:
            self.connection.close_channel(self)
