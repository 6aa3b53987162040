"""How a pool process of ``direct`` takes messages: one round trip settles what it has run, and brings what comes next.

    results that are to be stored ─ acknowledgements ─ wait for a sign, where nothing is left ─ fetch

While Redis does not answer, everything stays here, and goes out with the next round trip. What a fetch may have brought
that was never answered is told to the main process, which gives it back.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import NoScriptError, RedisError

from graft.config import keys
from graft.config.redis_client import broker
from graft.config.transport.channel import STOCK_SEEN
from graft.config.transport.fetch import FetchCommand, Fetcher, Keys, Taken
from graft.tasks.results.result_store import CONCLUDE
from graft.tasks.results.stored_later import Ending
from graft.workers.result_patch import STORE

logger = logging.getLogger(__name__)

WAIT: Final = 1.0  # Seconds after which one that waits looks at its orders again.
MOST: Final = 16  # Messages taken by one fetch, where they are short.
AT_ONCE: Final = 0.004  # Seconds of work that one fetch may bring.
SHORTEST: Final = len(":1\r\n")  # A reply of Redis to what it is told.
PAUSE: Final = 0.2  # Seconds between two attempts to reach Redis.


class Source(NamedTuple):
    """From where messages are taken; part of the orders."""

    queues: tuple[str, ...] = ()
    takes_turns: bool = False  # The queues, among their messages of one priority.
    unacked: str = ""
    unacked_index: str = ""
    wakeups: tuple[str, ...] = ()
    lists: tuple[tuple[str, ...], ...] = ()  # Of each queue, by priority.

    @classmethod
    def of(cls, given: Sequence[Any]) -> Source:
        """From what JSON made of it."""
        queues, takes_turns, unacked, index, wakeups, lists = given
        return cls(tuple(queues), takes_turns, unacked, index, tuple(wakeups), tuple(map(tuple, lists)))

    def command(self, first: int) -> FetchCommand:
        """The fetch in which the queue with the number *first* comes first among those of a priority."""
        order = [*range(first, len(self.queues)), *range(first)]
        lists = [self.lists[queue][rank] for rank in range(len(self.lists[0])) for queue in order]
        keys = Keys(self.unacked, self.unacked_index, [self.wakeups[queue] for queue in order], lists)
        return FetchCommand(tuple(self.queues[queue] for queue in order), keys)


class Taking:
    """The connection of one pool process, and what is to be told on it."""

    def __init__(self) -> None:
        self._client: Any = None
        self._connection: Any = None
        self._fetcher = Fetcher()
        self._source = Source()
        self._commands: dict[int, FetchCommand] = {}
        self._first = 0
        self._stores: deque[Ending] = deque()  # Two threads put in and take out.
        self._acks: deque[str] = deque()
        self._stored_at = 0.0
        self._poll = WAIT
        self._seconds = 0.0  # Of the usual run here.
        self._is_failing = False
        self._client_id = 0

    def use(self, source: Source, poll: float) -> None:
        """Take from *source* from now on, and look every *poll* seconds where senders announce nothing."""
        self._poll = poll
        if source != self._source:
            self._source, self._commands, self._first = source, {}, 0

    def reads(self, queue: str) -> bool:
        """Whether messages of *queue* may be taken, still."""
        return queue in self._source.queues

    # ---- what is to be told ------------------------------------------------------------------------------------------

    @property
    def settles(self) -> bool:
        """Whether what stores a result also acknowledges: not under a prefix of the broker's own keys."""
        return self._source.unacked == keys.UNACKED

    def store(self, how: Ending) -> None:
        """Have a result stored with the next round trip, which acknowledges its message too."""
        if not self._stores:
            self._stored_at = time.monotonic()
        self._stores.append(how)

    @property
    def owed_for(self) -> float:
        """Seconds for which a result has waited to be stored."""
        return time.monotonic() - self._stored_at if self._stores else 0.0

    def ack(self, tag: str) -> None:
        self._acks.append(tag)

    def note(self, seconds: float) -> None:
        """A run took *seconds*: short ones are taken several at a time, a long one makes the next fetch careful."""
        self._seconds = seconds if seconds > self._seconds else self._seconds + 0.1 * (seconds - self._seconds)

    @property
    def owes(self) -> bool:
        """Whether Redis has still to be told something."""
        return bool(self._stores or self._acks)

    # ---- round trips -------------------------------------------------------------------------------------------------

    def tags(self) -> tuple[str, ...]:
        """The tags that the next fetch gives to its messages."""
        return self._fetcher.tags(max(1, min(MOST, int(AT_ONCE / (self._seconds + 1e-6)))))

    def fetch(self, tags: tuple[str, ...]) -> list[Taken]:
        """Tell what is to be told; messages under *tags*, none where none came within a second.

        Raises:
            redis.ConnectionError: Redis does not answer. Messages may have been taken under *tags* all the same.
        """
        turn = self._first % len(self._source.queues)
        command = self._commands.get(turn) or self._commands.setdefault(turn, self._source.command(turn))
        connection = self._connected()
        hears_all = time.monotonic() - self._fetcher.unannounced_at > STOCK_SEEN
        stores, acks = _drained(self._stores), _drained(self._acks)
        told = len(stores) + (2 if acks else 0)
        replies: list[Any] = []

        def read(name: str) -> Any:
            if name != "EVALSHA":
                reply = self._client.parse_response(connection, name)
                if name == "BRPOP" and told:
                    _wake_after(connection, 0)
                return reply
            try:
                replies.append(self._client.parse_response(connection, name))
            except redis.ResponseError as error:
                replies.append(error)
            return None

        try:
            others, waits = [self._stored(how) for how in stores], self._fetcher.waits_next
            self._fetcher.send(connection, command, tags, WAIT if hears_all else self._poll, acks, others)
            if told and waits:
                _wake_after(connection, told)
            taken = self._fetcher.read(read, MOST)
        except (RedisError, OSError) as error:
            self._lose(error, stores, acks)
            raise redis.ConnectionError(str(error)) from error
        self._is_failing = False
        for how, reply in zip(stores, replies, strict=False):
            self._note_stored(how, reply)
        if taken and self._source.takes_turns:
            self._first = self._source.queues.index(taken[-1].queue) + 1
        return taken

    def flush(self) -> bool:
        """Tell what is to be told, without a fetch; False where Redis does not answer."""
        if not self.owes:
            return True
        stores, acks = _drained(self._stores), _drained(self._acks)
        try:
            connection = self._connected()
            commands = [self._stored(how) for how in stores]
            if acks:
                commands += [("HDEL", self._source.unacked, *acks), ("ZREM", self._source.unacked_index, *acks)]
            connection.send_packed_command(connection.pack_commands(commands))
            replies = [self._reply(connection, command[0]) for command in commands]
        except (RedisError, OSError) as error:
            self._lose(error, stores, acks)
            return False
        for how, reply in zip(stores, replies, strict=False):
            self._note_stored(how, reply)
        return True

    def _reply(self, connection: Any, name: str) -> Any:
        try:
            return self._client.parse_response(connection, name)
        except redis.ResponseError as error:
            return error

    def _stored(self, how: Ending) -> tuple[Any, ...]:
        return ("EVALSHA", how.script.sha, len(how.keys), *how.keys, *how.arguments)

    def _note_stored(self, how: Ending, reply: Any) -> None:
        if isinstance(reply, int):
            how.told(reply)
        elif isinstance(reply, NoScriptError):  # Another server, or one that was told to forget scripts.
            self._stores.append(how)
            self._client.script_load(how.script.script)
        elif isinstance(reply, Exception):  # A full Redis, for instance: until it takes the result.
            logger.warning("the result of %s cannot be stored, trying again: %s", how.key, reply)
            self._stores.append(how)
            time.sleep(PAUSE)

    # ---- the connection ----------------------------------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        """Redis's number of the connection, 0 where there is none."""
        return int(self._client_id) if self._connection is not None else 0

    def _connected(self) -> Any:
        if self._connection is None:
            self._client = self._client or broker(client_name="graft-direct")
            connection = self._client.connection_pool.get_connection()
            try:
                for script in (STORE, CONCLUDE):
                    connection.send_command("SCRIPT", "LOAD", script.script)
                    connection.read_response()
                connection.send_command("CLIENT", "ID")
                self._client_id = connection.read_response()
            except redis.ResponseError:  # A role that may not: whoever waits is not woken early.
                self._client_id = 0
            except BaseException:
                connection.disconnect()
                self._client.connection_pool.release(connection)
                raise
            self._connection = connection
        return self._connection

    def _lose(self, error: Exception, stores: list[Ending], acks: list[str]) -> None:
        self._stores.extendleft(reversed(stores))
        self._acks.extendleft(reversed(acks))
        if not self._is_failing:
            logger.warning("a pool process cannot reach Redis, and keeps what it has to tell: %s", error)
        self._is_failing = True
        self._fetcher = Fetcher()
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()
            self._client.connection_pool.release(connection)


def _wake_after(connection: Any, replies: int) -> None:
    """Have what waits on *connection* sleep on while no more than so many short *replies* have come.

    Redis answers what is told at once, and the wait for a message when there is one: each wakes a process for itself.
    """
    if type(connection._sock) is socket.socket:
        connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 + SHORTEST * replies)


def _drained(owed: deque[Any]) -> list[Any]:
    """All that is in *owed*, taken out; what another thread puts in meanwhile is in the list or stays."""
    found = []
    while owed:
        found.append(owed.popleft())
    return found
