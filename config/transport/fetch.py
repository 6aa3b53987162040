"""Takes messages from Redis over the connection that kombu polls: one command under way at a time.

    idle ─ send() ─► pending: fetch.lua is on its way, behind a BRPOP where the last fetch found nothing ─ read() ─► idle

Whoever delivers or waits adds a wakeup to a list of each queue: BRPOP waits for one, and Redis runs the fetch in the
instant in which that ends. Commands are packed here: a fetch has about a hundred arguments, of which all but the last
stay the same, and packing them took redis-py 25 us, this takes 2.4 us.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kombu.utils.uuid import uuid

from graft.config import lua

FETCH: Final = lua.text(__file__, "fetch")  # As text: it shares a round trip with other commands.


class Keys(NamedTuple):
    """The keys in Redis that a fetch from some queues touches."""

    unacked: str
    unacked_index: str
    wakeups: Sequence[str]  # One for each queue.
    lists: Sequence[str]  # For each priority one of each queue.


class FetchCommand:
    """The command that fetches from *queues*, packed but for its last arguments."""

    def __init__(self, queues: tuple[str, ...], keys: Keys) -> None:
        self.queues = queues
        self.keys = keys
        names = [json.dumps(queue) for queue in queues]
        all_keys = (keys.unacked, keys.unacked_index, *keys.wakeups, *keys.lists)
        first = ("EVAL", FETCH, len(all_keys), *all_keys, len(queues), *names)
        self._count = len(first)
        self._first = b"".join(map(_packed, first))

    def packed(self, *last: object) -> bytes:
        """The command as it travels; *last* are the arguments that differ: time, wakeup taken, delivery tags."""
        return b"*%d\r\n%b%b" % (self._count + len(last), self._first, b"".join(map(_packed, last)))


def _packed(argument: object) -> bytes:
    content = str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(content), content)


class Pending(NamedTuple):
    """A fetch that has not been answered: the tags that its messages would have, and the queues that it asks.

    ``acks`` are messages of earlier fetches that are acknowledged on the way.
    """

    tags: tuple[str, ...]
    queues: tuple[str, ...]
    waits: bool
    acks: tuple[str, ...]

    @property
    def replies(self) -> list[str]:
        """The commands that are answered, in this order."""
        return [*(["BRPOP"] if self.waits else []), *(["HDEL", "ZREM"] if self.acks else []), "EVAL"]


class Taken(NamedTuple):
    """A message that has left its list and is on record under *tag*."""

    raw: bytes
    tag: str
    queue: str


class Fetcher:
    """The fetch under way on a connection, and what the last one found."""

    def __init__(self) -> None:
        self.pending: Pending | None = None
        self._waits_next = False
        self._next_limit = 1

    def send(self, connection: Any, command: FetchCommand, limit: int, wait: float, acks: Sequence[str]) -> bool:
        """Ask for up to *limit* messages, after a wait of up to *wait* seconds where the last fetch left none.

        Whether *acks* travel along: not behind a wait. Those of a fetch that was never answered travel again.
        """
        waits, unanswered = self._waits_next, self.unanswered_acks
        sent = () if waits else (*unanswered, *acks)
        tags = tuple(uuid() for _ in range(max(1, min(self._next_limit, limit))))
        self.pending = Pending(tags, command.queues, waits, sent)
        commands: list[tuple[Any, ...]] = []
        if waits:
            commands.append(("BRPOP", *command.keys.wakeups, wait))
        elif sent:
            commands += [("HDEL", command.keys.unacked, *sent), ("ZREM", command.keys.unacked_index, *sent)]
        before = connection.pack_commands(commands) if commands else []
        connection.send_packed_command([b"".join([*before, command.packed(time.time(), int(waits), *tags)])])
        return not waits

    @property
    def unanswered_acks(self) -> tuple[str, ...]:
        """The acknowledgements of a fetch that was not answered; Redis may or may not have heard of them."""
        return self.pending.acks if self.pending else ()

    def answered(self, reply: Sequence[Any], most: int) -> list[Taken]:
        """The messages in the *reply* to the fetch. The next one asks for more, up to *most*, where there were many."""
        has_more, found = reply
        pending, self.pending = self.pending, None
        self._waits_next = not has_more
        if pending is None or not found:
            return []
        self._next_limit = min(most, 2 * len(found) + 2)
        return [
            Taken(raw, tag, pending.queues[number - 1]) for (number, raw), tag in zip(found, pending.tags, strict=False)
        ]

    def failed(self) -> None:
        """The reply did not come: the next fetch does not wait."""
        self._waits_next = False
