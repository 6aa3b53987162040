"""Keeps Redis's record of delivered messages true, also when Redis is away or full.

kombu records every message that a worker holds, so that another can have it when the worker dies. An acknowledgement
that Redis could not be told is pending, by address of the broker, and outlives the channel on which sending it failed.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import Any, Final, Literal

import redis
from kombu.asynchronous import get_event_loop
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.exceptions import ResponseError

from graft.config import keys, lua
from graft.config.private_names.of_kombu import stock, virtual
from graft.config.transport.sending_channel import WAKEUP_MS, Ready

logger = logging.getLogger(__name__)

ACK_DELAY: Final = 0.002  # Seconds in which the next fetch may take an acknowledgement along.
AGAIN: Final = "again"  # In the delivery info of a message that was with a worker before, and may have run there.
RETURNED_TTL: Final = 86400  # Seconds for which a worker may be away and still notice that its message went back.
TOGETHER: Final = 20  # Messages that go back in one step,
BYTES: Final = 8_000_000  # unless they have more bytes than this.
SELF_ACK_DELAY: Final = 0.02  # For what Redis has been told by the run already.
OVERDUE: Final = lua.load(__file__, "overdue")
GIVE_BACK: Final = lua.load(__file__, "give_back")
LOST: Final = (redis.ConnectionError, redis.TimeoutError, OSError)


# How a message is settled that Redis could not be told of: acknowledged; given back; given back by a lost process.
Settling = Literal["", "back", "lost"]


class PendingAcks(defaultdict[tuple[Any, ...], dict[str, Settling]]):
    """Acknowledgements that Redis could not be told, by broker: delivery tag -> how its message is settled.

    A pool process has none of its worker's.
    """

    def __init__(self) -> None:
        super().__init__(dict)


class _Records(stock.QoS):
    """The record of the messages that workers hold, and the sweep that gives away those of lost workers.

    No malformed record stops it. A message whose worker was lost says so from then on (``redelivered``); one that its
    worker gives back by itself does not.
    """

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % max(1, interval):
            return
        left, has_more = math.inf if num is None else num, True
        while left > 0 and has_more:
            latest, has_more, records = self._overdue(int(min(left, TOGETHER)))
            if records:
                self._give_back(records, renewed_until=latest)
            left -= len(records)

    def _overdue(self, most: int) -> tuple[float, bool, dict[bytes, bytes | None]]:
        """When leases that have ended were renewed last at most, whether there may be more, and the records of some.

        By Redis's own clock, by which leases are written: no worker's clock decides about the work of another.
        """
        names = self.channel._prefixed([self.unacked_index_key, self.unacked_key])
        latest, has_more, *found = OVERDUE(
            names, [self.visibility_timeout, most, BYTES], self.channel._unprefixed_client()
        )
        return float(latest), bool(has_more), dict(zip(found[::2], found[1::2], strict=True))

    def restore_by_tag(
        self, tag: str | bytes, client: Any = None, leftmost: bool = False, *, is_lost: bool = True,
        renewed_until: float | None = None,
    ) -> None:  # fmt: skip
        """Put the message back on its queue. ``is_lost``: it comes from a process that did not give it back itself.

        ``renewed_until``: only if its lease was not renewed after that time, up to the instant in which it goes back.
        """
        with self.channel.conn_or_acquire(client) as connected:
            record = connected.hget(self.unacked_key, tag)
        self._give_back({tag: record}, leftmost, is_lost=is_lost, renewed_until=renewed_until)

    def _give_back(
        self, records: Mapping[Any, bytes | None], leftmost: bool = False, *, is_lost: bool = True,
        renewed_until: float | None = None,
    ) -> None:  # fmt: skip
        """Put messages back in one step, each with the record that was read of it, in this order."""
        # One that its own worker gives back has no run that could come back from far away.
        marks_last = 10 * self.channel.visibility_timeout if renewed_until is None else RETURNED_TTL
        latest, push = "" if renewed_until is None else renewed_until, "LPUSH" if leftmost else "RPUSH"
        arguments = [latest, max(1, int(marks_last)), WAKEUP_MS, push]
        for tag, record in records.items():
            try:
                lists = self._returning(record, is_lost) if record else []
            except redis.RedisError as error:  # The quarantine is full, too.
                if renewed_until is None:
                    raise
                logger.warning("a record that nobody can read stays for the next sweep: %r", error)
                continue
            arguments += [tag, len(lists), *chain.from_iterable(lists)]
        names = self.channel._prefixed([self.unacked_key, self.unacked_index_key, keys.RETURNED])
        GIVE_BACK(names, arguments, self.channel._unprefixed_client())

    def _returning(self, record: bytes, is_lost: bool) -> list[Ready]:
        """The message on *record* as each of its queues gets it back; none where nobody can read it."""
        try:
            message, exchange, routing_key = loads(bytes_to_str(record))
            message["properties"]["delivery_info"][AGAIN] = True  # Not a header: those are signed.
            if is_lost:
                message["headers"]["redelivered"] = True
                message["properties"]["delivery_info"]["redelivered"] = True
            lists: list[Ready] = self.channel.returning(message, exchange, routing_key)
            return lists
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # A record that kombu did not write would stop every sweep at this point.
            self.channel.quarantine(record, self.unacked_key, "malformed_record", repr(error))
            return []

    def _drop(self, delivery_tag: str) -> None:
        with self.channel.conn_or_acquire() as client:
            # Redis 7 refuses every MULTI at maxmemory, these two commands never. An index entry without a record is
            # swept up; a record without an index entry would stay for ever.
            pipe = client.pipeline(transaction=False)
            pipe.hdel(self.unacked_key, delivery_tag).zrem(self.unacked_index_key, delivery_tag).execute()


class QoS(_Records):
    """Keeps the record of delivered messages true when Redis is away or full."""

    _owners_could_report = False

    def append(self, message: Any, delivery_tag: str) -> None:
        if delivery_tag == self.channel.recorded_tag:  # By the script that took it.
            self.channel.recorded_tag = ""
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def outstanding(self) -> dict[str, Any]:
        """The messages that this process was given and has not settled, by delivery tag."""
        return {tag: message for tag, message in tuple(self._delivered.items()) if tag not in self._dirty}

    def ack(self, delivery_tag: str) -> None:
        hub = get_event_loop() if self.channel.collects_acks else None
        if hub is None:
            self._settle_or_keep(delivery_tag, requeue=False)
            return
        # The next fetch takes it along; where more work waits, the same turn of the loop sends one. Else it goes alone,
        # or with those that ended in the same moment.
        delay = SELF_ACK_DELAY if self._acks_itself(delivery_tag) else ACK_DELAY
        self.forget(delivery_tag)
        self.channel.unsent_acks.append(delivery_tag)
        if len(self.channel.unsent_acks) == 1:
            hub.call_later(delay, self.send_acks)

    def _acks_itself(self, delivery_tag: str) -> bool:
        """Whether the run acknowledges it along with its result. A chord's part does not, nor does one that fails."""
        tasks = self.channel.self_acking_tasks
        message = self._delivered.get(delivery_tag) if tasks else None
        return message is not None and message.headers.get("task") in tasks

    def send_acks(self) -> None:
        """Have Redis forget the messages that were acknowledged since the last time."""
        tags, self.channel.unsent_acks = self.channel.unsent_acks, []
        if not tags:
            return
        try:
            self.channel.forget_records(tags)
        except Exception as error:
            logger.warning("%d acknowledgements could not be sent, trying again later: %r", len(tags), error)
            self.channel.pending_acks.update(dict.fromkeys(tags, ""))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        # Celery gives a message back so when its process is lost. A run that survives its message's return says so
        # (Runs.survived).
        self._settle_or_keep(delivery_tag, requeue, is_lost=True)

    def _settle_or_keep(self, delivery_tag: str, requeue: bool, *, is_lost: bool = False) -> None:
        try:
            self.settle(delivery_tag, requeue, is_lost=is_lost)
        except Exception as error:  # Whatever it is: a message that is neither settled nor pending is held for ever.
            logger.warning("the acknowledgement of %s could not be sent, trying again later: %r", delivery_tag, error)
            how: Settling = "" if not requeue else "lost" if is_lost else "back"
            self.channel.pending_acks[delivery_tag] = how
        self.forget(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Take the message off the prefetch count of this process; Redis is not told."""
        virtual.QoS.ack(self, delivery_tag)

    def settle(self, delivery_tag: str, requeue: bool, *, is_lost: bool = False) -> None:
        """Have Redis forget the message, or put it back on its queue."""
        if requeue:
            self.restore_by_tag(delivery_tag, leftmost=True, is_lost=is_lost)
            return
        self._drop(delivery_tag)

    def return_record(self, delivery_tag: str, *, is_lost: bool) -> None:
        """Put back a message that was never this channel's to run, but a pool process's."""
        try:
            self.restore_by_tag(delivery_tag, leftmost=is_lost, is_lost=is_lost)
        except Exception as error:
            logger.warning("%s could not be put back, trying again later: %r", delivery_tag, error)
            self.channel.pending_acks[delivery_tag] = "lost" if is_lost else "back"

    def restore_unacked(self, client: Any = None) -> None:
        """Give back what this process holds: its own decision, so nothing is lost with it."""
        tags = list(reversed(self._delivered))  # Each goes to the head of its queue.
        for first in range(0, len(tags), TOGETHER):
            some = tags[first : first + TOGETHER]
            with self.channel.conn_or_acquire(client) as connected:
                records = connected.hmget(self.unacked_key, some)
            self._give_back(dict(zip(some, records, strict=True)), is_lost=False)
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Give abandoned messages to others, unless Redis came up too recently for their owners to have reported."""
        if not self._owners_could_report:
            with self.channel.conn_or_acquire() as client, suppress(ResponseError):  # INFO may be forbidden.
                if client.info("server")["uptime_in_seconds"] < self.visibility_timeout:
                    return
            self._owners_could_report = True
        super().restore_visible(*args, **kwargs)
        self._of_stock_workers.restore_visible(*args, **kwargs)

    @cached_property
    def _of_stock_workers(self) -> Any:
        """The record of stock workers, which share our queues: swept as they sweep it themselves, if any is left."""
        qos, channel = _Records(self.channel), self.channel
        qos.unacked_key, qos.unacked_index_key = channel.stock_unacked_key, channel.stock_unacked_index_key
        qos.visibility_timeout = channel.stock_visibility_timeout
        return qos
