"""The sending half of the hardened channel: messages leave in one round trip, or wait for the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol

import redis
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from graft.config import keys, lua, redis_clock
from graft.config.deployment import settings
from graft.config.private_names.of_kombu import stock
from graft.config.transport import signing
from graft.config.transport.due import Placed, due_of, put
from graft.config.transport.fair_order import FairOrder, Flow, FlowMessage
from graft.config.transport.fence import Fence
from graft.config.transport.round_trip import Command, RoundTrips
from graft.config.transport.unique import Terms

WAKEUP_MS: Final = 10_000  # A reader that waits fetches again every second, woken or not.
SENT_MS: Final = 60_000  # Longer than anybody tries to send a batch of messages again.
PUSH_MESSAGES: Final = lua.text(__file__, "push_messages")  # A function for the scripts that do so.
PUSH_ONCE: Final = lua.load(__file__, "push_once", functions=PUSH_MESSAGES)
NOT_NOW: Final = ("NOREPLICAS", "MISCONF")  # A server that writes nothing until replicas or its disk are back.
# Is given what this context sends, with the channel, and says whether it keeps it, to be pushed later.
outbox: ContextVar[Callable[[SendingChannel, str, dict[str, Any]], bool] | None] = ContextVar(
    "graft_outbox", default=None
)


class Outgoing(NamedTuple):
    """A *message* for *queue*; of which batch it is, if of any, and how many seconds of work are expected of it."""

    queue: str
    message: dict[str, Any]
    flow: Flow | None = None
    seconds: float = 0.0


class Ready(NamedTuple):
    """The text of a message, the list that it goes to, and the list of signs of its queue."""

    list: str
    signs: str
    text: str


def push_arguments(messages: Iterable[Ready]) -> tuple[list[str], list[Any]]:
    """What push_messages.lua is given for *messages*: keys and arguments."""
    ready = list(messages)
    counts = Counter(message.signs for message in ready)
    texts = [message.text for message in ready]
    return [*(message.list for message in ready), *counts], [WAKEUP_MS, len(ready), *texts, *counts.values()]


class Burst(Protocol):
    """Takes messages, sealed, that are to be pushed together."""

    def add(self, queue: str, message: dict[str, Any]) -> None:
        """*message* is for *queue*."""

    def result(self, task_id: str) -> Any:
        """The result object of a task whose message it has taken, if there is one already."""


class SendingChannel(stock.Channel):
    """A Redis channel that sends."""

    message_limit: int
    burst: Burst | None = None
    _round_trips: RoundTrips | None = None
    _kept_client: Any = None
    _fair_order: FairOrder

    def _prefixed(self, names: Iterable[str]) -> list[str]:
        return [self.global_keyprefix + name for name in names]

    def _wakeups(self, queue: str) -> str:
        """The list that holds one element for each message that came to *queue*, for readers that wait."""
        return f"{queue}{self.sep}sign"

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
        if (take := outbox.get()) is not None:
            messages = [(queue, message) for queue, message in messages if not take(self, queue, message)]
        names, arguments = push_arguments(self.ready(queue, message) for queue, message in messages)
        PUSH_ONCE([*self._prefixed([keys.SENT + token]), *names], [SENT_MS, *arguments], self._unprefixed_client())

    def ready(self, queue: str, message: dict[str, Any]) -> Ready:
        """*message*, which is sealed, as Redis is given it."""
        name = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        key, signs = self._prefixed([name, self._wakeups(queue)])
        return Ready(key, signs, dumps(message))

    def record_keys(self, tag: str) -> list[str]:
        """The keys in Redis that say what became of the delivery *tag*: the mark that it went back, record, index."""
        return self._prefixed([keys.RETURNED + tag, self.unacked_key, self.unacked_index_key])

    def _unprefixed_client(self) -> Any:
        """For scripts, whose keys have the prefix: kombu would put it before the first of them once more."""
        return redis.Redis(connection_pool=self.pool) if self.global_keyprefix else self._create_client()

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
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except ResponseError as error:
            if not any(word in str(error) for word in NOT_NOW):
                raise
            raise redis.ConnectionError(f"the queue {queue} cannot be declared now: {error}") from error
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
            take = outbox.get()
            if take is not None and take(self, queue, message):
                return
            if self.burst is None:
                self.push([Outgoing(queue, message)])
            else:
                self.burst.add(queue, message)
            return
        super()._put(queue, message, **kwargs)
        with self.conn_or_acquire() as client:
            self._wake(client.pipeline(transaction=False), queue).execute()

    def _placed(self, queue: str, message: dict[str, Any]) -> Placed:
        key, signs, text = self.ready(queue, message)
        return Placed(message["headers"]["id"], queue, key, signs, text)

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
