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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty
from typing import Any, Final, NamedTuple

import redis
from kombu.utils.json import dumps
from redis.exceptions import NoScriptError, RedisError, ResponseError

from graft.config import keys, lua, redis_clock
from graft.config.deployment import part, settings
from graft.config.private_names.of_kombu import stock
from graft.config.transport import quarantine, signing
from graft.config.transport.due import Placed, due_of, put
from graft.config.transport.fair_order import FairOrder, Flow, FlowMessage
from graft.config.transport.fence import Fence
from graft.config.transport.fetch import FetchCommand, Fetcher, Keys, Taken
from graft.config.transport.message_validation import MESSAGE_LIMIT, BadMessage, checked, decode
from graft.config.transport.qos import LOST, PendingAcks, QoS
from graft.config.transport.round_trip import Command, RoundTrips
from graft.config.transport.unique import Terms

logger = logging.getLogger(__name__)

OWN_OPTIONS: Final = ("message_limit", "stock_unacked_key", "stock_unacked_index_key", "stock_visibility_timeout")
WAKEUP_MS: Final = 10_000  # A reader that waits fetches again every second, woken or not.
STOCK_POLL: Final = 0.02  # Seconds between two fetches while stock producers, which wake nobody, were seen lately.
STOCK_SEEN: Final = 3600.0
SENT_MS: Final = 60_000  # Longer than anybody tries to send a batch of messages again.
RENEW: Final = lua.load(__file__, "renew")
PUSH_ONCE: Final = lua.load(__file__, "push_once")
FLUSH_PAUSE: Final = 1.0  # Seconds between two attempts to send pending acknowledgements that Redis refuses.


class Outgoing(NamedTuple):
    """A *message* for *queue*; of which batch it is, if of any, and how many seconds of work are expected of it."""

    queue: str
    message: dict[str, Any]
    flow: Flow | None = None
    seconds: float = 0.0


class Channel(stock.Channel):
    """A Redis channel that survives its messages and its server."""

    QoS = QoS
    message_limit = MESSAGE_LIMIT
    fetch_limit = 1  # Messages taken by one fetch, for a pool that runs many at once.
    leaves_fetching = False  # To the pool's processes.
    collects_acks = False  # Acknowledgements wait a moment for others, on the worker's event loop.
    self_acking_tasks: frozenset[str] = frozenset()  # Whose runs acknowledge their own messages: ours has time.
    unacked_key, unacked_index_key, unacked_mutex_key = keys.UNACKED, keys.UNACKED_INDEX, keys.UNACKED_MUTEX
    # Where stock workers record what they hold, and for how long they may.
    stock_unacked_key, stock_unacked_index_key = stock.Channel.unacked_key, stock.Channel.unacked_index_key
    stock_visibility_timeout = stock.Channel.visibility_timeout
    from_transport_options = (*stock.Channel.from_transport_options, *OWN_OPTIONS)
    gather: Callable[[str, dict[str, Any]], None] | None = (
        None  # Takes messages, sealed, that are to be pushed together.
    )
    _pool_once_closed: Any = None
    _next_flush_at = 0.0
    _round_trips: RoundTrips | None = None
    _kept_client: Any = None

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        address = connection.client
        self.pending_acks = part(PendingAcks)[address.hostname, address.port, address.virtual_host]
        self.unsent_acks: list[str] = []  # Redis is told of them with the next fetch, or soon.
        self.recorded_tag = ""
        self._gone: set[str] = set()  # Messages that were taken, and went back before they were read.
        self._fetcher = Fetcher()
        self._fetch_commands: dict[tuple[str, ...], FetchCommand] = {}
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
        queues = self._queue_cycle.consume(len(self.active_queues))
        takes_turns = self.queue_order_strategy == "round_robin"
        unacked, unacked_index = self._prefixed([self.unacked_key, self.unacked_index_key])
        lists = [self._prefixed(self._q_for_pri(queue, step) for step in self.priority_steps) for queue in queues]
        return list(queues), takes_turns, unacked, unacked_index, self._prefixed(map(self._wakeups, queues)), lists

    def _prefixed(self, keys: Iterable[str]) -> list[str]:
        return [self.global_keyprefix + key for key in keys]

    def _wakeups(self, queue: str) -> str:
        """The list that holds one element for each message that came to *queue*, for readers that wait."""
        return f"{queue}{self.sep}sign"

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

    # ---- sending -----------------------------------------------------------------------------------------------------

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        self._refuse_too_large(message)
        return super().basic_publish(message, exchange, routing_key, **kwargs)

    def seal(self, queue: str, message: dict[str, Any]) -> None:
        """Make *message* ready for *queue*, as :meth:`basic_publish` does."""
        self._refuse_too_large(message)
        self._inplace_augment_message(message, "", queue)

    def push(self, messages: Iterable[Outgoing], fence: Fence | None = None) -> None:
        """Put *messages*, which are sealed, on their queues in one round trip. Those of a flow share their lists.

        Raises:
            FencedOffError: *fence* says that this sender may not any more.
        """
        own = None if fence is None else Flow()
        wakeups: Counter[str] = Counter()
        commands: list[Command] = []
        ordered: defaultdict[str, list[FlowMessage]] = defaultdict(list)
        later: list[tuple[float, Placed]] = []
        for queue, message, flow, seconds in messages:
            if (due := due_of(message)) is not None:
                later.append((due, self._placed(queue, message)))
                continue
            key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
            (key,) = self._prefixed([key])
            if one := flow or own:
                ordered[key].append(FlowMessage(one, seconds, dumps(message)))
            else:
                commands.append(("LPUSH", key, dumps(message)))
            wakeups[queue] += 1
        for queue, count in wakeups.items():
            (key,) = self._prefixed([self._wakeups(queue)])
            commands += [("LPUSH", key, *[1] * count), ("PEXPIRE", key, WAKEUP_MS)]
        self._fair_order.push(ordered, commands, fence)
        if later:
            with self.conn_or_acquire() as client:
                put(later, WAKEUP_MS, client)

    def push_once(self, messages: list[tuple[str, dict[str, Any]]], token: str) -> None:
        """Put *messages*, each with its queue, on their queues, unless that was done under *token* before."""
        (guard,) = self._prefixed([keys.SENT + token])
        lists = [
            self._q_for_pri(queue, self._get_message_priority(message, reverse=False)) for queue, message in messages
        ]
        counts = Counter(queue for queue, _ in messages)
        names = [guard, *self._prefixed([*lists, *map(self._wakeups, counts)])]
        bodies = [dumps(message) for _, message in messages]
        with self.conn_or_acquire() as client:
            PUSH_ONCE(names, [SENT_MS, WAKEUP_MS, len(bodies), *bodies, *counts.values()], client)

    def reorder(self, queue: str, priority: int, mark: str, flow: Flow, factor: float) -> int:
        """Multiply by *factor* the spacing of *flow*'s messages that wait, with *mark* in their text; how many."""
        (key,) = self._prefixed([self._q_for_pri(queue, priority)])
        with self.conn_or_acquire() as client:
            return self._fair_order.reorder(key, mark, flow, factor, client)

    def _run(self, commands: list[Command]) -> list[Any]:
        if self._round_trips is None:
            self._round_trips = RoundTrips(self.pool)
        return self._round_trips.run(commands)

    def _create_client(self, asynchronous: bool = False) -> Any:
        """A client of this channel's pool. kombu makes one for each command, and takes 0.1 ms for it."""
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
            self._kept_client = super()._create_client()
        return self._kept_client

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)
        if exchange != signing.REPLIES and self.typeof(exchange).type != "fanout":
            with self.conn_or_acquire() as client, suppress(ResponseError):  # A role that may not: others have.
                client.execute_command("ZADD", keys.QUEUES, redis_clock.now(), queue)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        terms, due = Terms.of(message.get("headers")), due_of(message)
        if terms is not None or due is not None:
            with self.conn_or_acquire() as client:
                if terms is not None:
                    terms.push(self._placed(queue, message), due, WAKEUP_MS, client)
                elif due is not None:
                    put([(due, self._placed(queue, message))], WAKEUP_MS, client)
            return
        batch = kwargs.get("_publish_batch")
        if batch is not None:
            super()._put(queue, message, **kwargs)
            batch.add("lpush", self._wakeups(queue), 1)
            batch.add("pexpire", self._wakeups(queue), WAKEUP_MS)
            return
        if queue not in (self._expires or ()):
            if self.gather is None:
                self.push([Outgoing(queue, message)])
            else:
                self.gather(queue, message)
            return
        super()._put(queue, message, **kwargs)
        with self.conn_or_acquire() as client:
            self._wake(client.pipeline(transaction=False), queue).execute()

    def _placed(self, queue: str, message: dict[str, Any]) -> Placed:
        step = self._get_message_priority(message, reverse=False)
        key, wakeups = self._prefixed([self._q_for_pri(queue, step), self._wakeups(queue)])
        return Placed(message["headers"]["id"], queue, key, wakeups, dumps(message))

    def _wake(self, pipe: Any, queue: str) -> Any:
        pipe.lpush(self._wakeups(queue), 1)
        pipe.pexpire(self._wakeups(queue), WAKEUP_MS)
        return pipe

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        super()._inplace_augment_message(message, exchange, routing_key)
        config = settings()
        if config.signs and exchange not in signing.UNSIGNED:
            signing.sign(message, signing.target(exchange or "", routing_key or ""), config.signing_keys)

    def _refuse_too_large(self, message: dict[str, Any]) -> None:
        size = len(message["body"]) * 4 // 3
        if size > self.message_limit:
            raise ValueError(
                f"a message of {size} bytes exceeds message_limit={self.message_limit} of the transport, which its "
                "reader enforces; send smaller batches, or a reference to the data"
            )

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
        with self.conn_or_acquire() as client:
            found = RENEW(self._prefixed([self.unacked_index_key, keys.RETURNED]), [*held, *unread], client)
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

    def _do_restore_message(
        self, payload: dict[str, Any], exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        queues = self._lookup(exchange, routing_key)
        if not queues:
            self.quarantine(json.dumps(payload).encode(), routing_key, "unroutable", f"{exchange!r} leads nowhere")
            return
        priority = self._get_message_priority(payload, reverse=False)
        for queue in queues:
            push = pipe.lpush if leftmost else pipe.rpush
            push(self._q_for_pri(queue, priority), dumps(payload))
            self._wake(pipe, queue)

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
