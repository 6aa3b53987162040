"""The channel of the hardened transport: no message and no outage ends a process that reads or sends through it.

The differences from kombu's channel:

- a message that cannot be decoded is moved to the quarantine, with a reason, instead of ending its reader;
- a message is taken and recorded in one step, so that no crash comes in between (kombu: BRPOP, then a second trip);
- an acknowledgement that Redis could not be told is kept, and sent before the next message is fetched;
- closing succeeds without Redis, and on request leaves running work alone instead of giving it to a second worker;
- after a restart of Redis no message counts as abandoned before its owner had time to report.
"""

from __future__ import annotations

import binascii
import json
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError, RedisError

from graft.config import keys, lua
from graft.config.deployment import part, settings
from graft.config.private_names.of_kombu import stock
from graft.config.transport import quarantine, signing
from graft.config.transport.fair_order import FairOrder
from graft.config.transport.fetch import FetchCommand, Fetcher, Keys, Taken
from graft.config.transport.message_validation import MESSAGE_LIMIT, BadMessage, checked, decode
from graft.config.transport.qos import LOST, PendingAcks, QoS
from graft.config.transport.sending_channel import Ready, SendingChannel

logger = logging.getLogger(__name__)

OWN_OPTIONS: Final = ("message_limit", "stock_unacked_key", "stock_unacked_index_key", "stock_visibility_timeout")
STOCK_POLL: Final = 0.02  # Seconds between two fetches while stock producers, which wake nobody, were seen lately.
STOCK_SEEN: Final = 3600.0
RENEW: Final = lua.load(__file__, "renew")
FLUSH_PAUSE: Final = 1.0  # Seconds between two attempts to send pending acknowledgements that Redis refuses.


class Channel(SendingChannel):
    """A Redis channel that survives its messages and its server."""

    QoS = QoS
    message_limit = MESSAGE_LIMIT
    fetch_limit = 1  # Messages taken by one fetch, for a pool that runs many at once.
    leaves_fetching = False  # To the pool's processes.
    collects_acks = False  # Acknowledgements wait a moment for others, on the worker's event loop.
    self_acking_tasks: frozenset[str] = frozenset()  # Whose runs acknowledge their own messages: ours has time.
    unacked_key, unacked_index_key = keys.UNACKED, keys.UNACKED_INDEX
    # Where stock workers record what they hold, and for how long they may.
    stock_unacked_key, stock_unacked_index_key = stock.Channel.unacked_key, stock.Channel.unacked_index_key
    stock_visibility_timeout = stock.Channel.visibility_timeout
    from_transport_options = (*stock.Channel.from_transport_options, *OWN_OPTIONS)
    _pool_once_closed: Any = None
    _next_flush_at = 0.0

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        address = connection.client
        self.pending_acks = part(PendingAcks)[address.hostname, address.port, address.virtual_host]
        self.unsent_acks: list[str] = []  # Redis is told of them with the next fetch, or soon.
        self.recorded_tag = ""
        self._gone: set[str] = set()  # Messages that were taken, and went back before they were read.
        self._fetcher = Fetcher()
        self._fetch_commands: dict[tuple[str, ...], FetchCommand] = {}
        self._source: tuple[Any, ...] | None = None
        super().__init__(connection, **kwargs)
        self._fair_order = FairOrder(self._run, *self._prefixed([keys.VIRTUAL_TIMES]))

    # ---- receiving ---------------------------------------------------------------------------------------------------

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self.leaves_fetching or not self._may_fetch():
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = time.monotonic()
        room = self.qos.can_consume_max_estimate()
        wait = self._longest_wait if timeout is None else timeout
        acks: list[str] = []
        if not self._fetcher.waits_next:
            acks, self.unsent_acks = self.unsent_acks, []
        command = self._fetch_command(tuple(queues))
        tags = self._fetcher.tags(self.fetch_limit if room is None else room)
        self._fetcher.send(connection, command, tags, wait or 0, acks)

    @property
    def _longest_wait(self) -> float:
        """Seconds until the next fetch where nobody says that a message has come."""
        hears_all = time.monotonic() - self._fetcher.unannounced_at > STOCK_SEEN
        return float(self.brpop_timeout) if hears_all else STOCK_POLL

    def _fetch_command(self, queues: tuple[str, ...]) -> FetchCommand:
        """The command for *queues*, in their order: they take turns, so there are as many commands as queues."""
        command = self._fetch_commands.get(queues)
        if command is None:
            unacked, unacked_index = self._prefixed([self.unacked_key, self.unacked_index_key])
            lists = self._prefixed(self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues)
            keys = Keys(unacked, unacked_index, self._prefixed(map(self._wakeups, queues)), lists)
            command = self._fetch_commands[queues] = FetchCommand(queues, keys)
        return command

    def source(self) -> tuple[Any, ...]:
        """What another process needs to know to fetch for this channel: queues, whether they take turns, and keys."""
        queues = list(self._queue_cycle.consume(len(self.active_queues)))
        if self._source is not None and self._source[0] == queues:  # It is asked for ten times a second.
            return self._source
        takes_turns = self.queue_order_strategy == "round_robin"
        unacked, unacked_index = self._prefixed([self.unacked_key, self.unacked_index_key])
        lists = [self._prefixed(self._q_for_pri(queue, step) for step in self.priority_steps) for queue in queues]
        wakeups = self._prefixed(map(self._wakeups, queues))
        self._source = queues, takes_turns, unacked, unacked_index, wakeups, lists
        return self._source

    def _brpop_read(self, **options: Any) -> bool:
        try:
            taken = self._fetcher.read(lambda command: self._reply(command, options), self.fetch_limit)
            if not taken:
                raise Empty
            for message in taken:
                self._deliver(message)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _reply(self, command: str, options: dict[str, Any]) -> Any:
        try:
            return self.client.parse_response(self.client.connection, command, **options)
        except NoScriptError:
            raise
        except (*self.connection_errors, RedisError) as error:
            self.client.connection.disconnect()
            if isinstance(error, self.connection_errors):
                raise
            # Such as WRONGTYPE or UNBLOCKED: another try may succeed, and the end of the worker helps nobody.
            raise redis.ConnectionError(f"fetching was refused: {error}") from error

    def _deliver(self, taken: Taken) -> None:
        """Deliver a message to its consumer; one that cannot be delivered is moved to the quarantine."""
        raw, tag, queue = taken
        self._queue_cycle.rotate(queue)
        if tag in self._gone:  # This process was away between the fetch and its reply, and another has the message.
            self._gone.discard(tag)
            return
        self.recorded_tag = tag
        try:
            message = decode(raw, self.message_limit)
            # A copied message carries the tag of its original, and settling one would drop the record of the other.
            message["properties"]["delivery_tag"] = tag
            self.connection._deliver(message, queue)
            if self.recorded_tag == tag:  # Nobody will acknowledge it: the reader asked for messages without.
                self._settle_later(tag, requeue=False)
        except RedisError as error:
            logger.warning("a message from %s goes back, Redis failed while it was delivered: %r", queue, error)
            self._settle_later(tag, requeue=True)
        except Exception as error:
            reason = error.reason if isinstance(error, BadMessage) else "undeliverable"
            if isinstance(error, binascii.Error):
                reason = "malformed_body"
            try:
                self.quarantine(raw, queue, reason, repr(error))
            except RedisError:
                self._settle_later(tag, requeue=True)
            else:
                self._settle_later(tag, requeue=False)

    def _settle_later(self, tag: str, *, requeue: bool) -> None:
        if tag not in self.qos._dirty:  # Else it was settled before Redis failed at something else.
            if tag in self.qos._delivered:
                self.qos.forget(tag)
            self.pending_acks[tag] = "back" if requeue else ""
        if not requeue:
            self._may_fetch()

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

    def _verify_command(self, message: dict[str, Any]) -> None:
        """Raise BadMessage unless the command changes nothing, or comes from somebody with the deployment's key."""
        config = settings()
        if not config.refuses_unsigned or signing.is_harmless(message):
            return
        info = message["properties"]["delivery_info"]
        target = signing.target(info["exchange"], info["routing_key"])
        flaw = signing.flaw(message, target, config.signing_keys, signing.COMMAND_AGE)
        if flaw:
            raise BadMessage("bad_signature", f"a control command is refused: {flaw}")

    def quarantine(self, raw: bytes, queue: str, reason: str, detail: str) -> None:
        """Keep *raw* for people to look at. Raises RedisError when Redis cannot; then it is not kept."""
        with self.conn_or_acquire() as client:
            quarantine.keep(client, self.global_keyprefix, raw, queue, reason, detail)

    # ---- owning messages ---------------------------------------------------------------------------------------------

    def renew(self, tags: Iterable[str]) -> list[str]:
        """Renew the leases of *tags* in Redis; those that were settled meanwhile stay settled.

        Returns the tags of messages that went back to their queues meanwhile: this process holds them no more.
        """
        held = list(tags)
        # Messages may have been taken and wait to be read.
        unread = self._fetcher.pending.tags if self._fetcher.pending is not None else ()
        if not held and not unread:
            return []
        names = self._prefixed([self.unacked_index_key, keys.RETURNED])
        found = RENEW(names, [*held, *unread], self._unprefixed_client())
        gone = [tag.decode() for tag in found]
        self._gone.update(set(gone).intersection(unread))
        return gone

    def forget_records(self, tags: Iterable[str]) -> None:
        """Have Redis forget the messages *tags*, in one round trip. Not while another thread sends on this channel."""
        record, index = self._prefixed([self.unacked_key, self.unacked_index_key])
        self._run([("HDEL", record, *tags), ("ZREM", index, *tags)])

    def flush_acks(self) -> None:
        """Send every pending acknowledgement; raises RedisError when Redis still cannot be told."""
        while self.pending_acks:
            tag, how = self.pending_acks.popitem()
            try:
                # That a process was lost with it is told too: else its death would not count.
                self.qos.settle(tag, requeue=bool(how), is_lost=how == "lost")
            except BaseException:
                self.pending_acks[tag] = how
                raise

    def _may_fetch(self) -> bool:
        """Try to send what is pending. A message that cannot be put back yet would only be taken again."""
        if self.pending_acks and time.monotonic() >= self._next_flush_at:
            try:
                self.flush_acks()
            except LOST:
                raise
            except Exception as error:
                logger.warning("acknowledgements are refused, trying again in %g s: %r", FLUSH_PAUSE, error)
                self._next_flush_at = time.monotonic() + FLUSH_PAUSE
        return not any(self.pending_acks.values())

    def returning(self, message: dict[str, Any], exchange: str, routing_key: str) -> list[Ready]:
        """*message*, which goes back, as each of its queues gets it. One that leads nowhere goes to the quarantine."""
        queues = self._lookup(exchange, routing_key)
        if not queues:
            self.quarantine(json.dumps(message).encode(), routing_key, "unroutable", f"{exchange!r} leads nowhere")
        return [self.ready(queue, message) for queue in queues]

    def finish_fetching(self) -> None:
        """Read the reply to the last fetch, a second at most, once nobody consumes: what it has taken goes back."""
        if self._in_poll:
            with suppress(Empty, *LOST):
                self._brpop_read()

    def keep_messages(self) -> None:
        """Prepare for a close that gives nothing back; acknowledgements go through a pool of their own afterwards."""
        self.do_restore = False
        self._pool_once_closed = self._get_pool()

    def adopt(self, messages: dict[str, Any]) -> None:
        """Take over the messages of a channel that was closed: they are settled, renewed and counted here."""
        for tag, message in messages.items():
            message.channel = self
            if not message.acknowledged:
                self.qos._quick_append(tag, message)

    def close(self) -> None:
        self.unsent_acks += self._fetcher.unanswered_acks
        self.qos.send_acks()
        for _ in range(2):  # The first failure may be the one broken connection, the second is the outage.
            try:
                super().close()
                break
            except (*LOST, RedisError, LookupError, AttributeError, TypeError) as error:
                logger.debug("closing a channel without Redis: %r", error)
                self._in_poll = None
                self.auto_delete_queues.clear()
        else:
            self._close_without_redis()
        self._pool = self._pool_once_closed

    def _close_without_redis(self) -> None:
        self.closed = True
        for step in (lambda: self.connection.cycle.discard(self), self._disconnect_pools, self._close_clients):
            with suppress(*LOST, RedisError, AttributeError):
                step()
        if self.connection is not None:
            self.connection.close_channel(self)
