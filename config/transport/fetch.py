"""Takes messages from Redis over the connection that kombu polls: one command under way at a time.

    idle ─ send() ─► pending: fetch.lua is asked, behind a BRPOP where the last fetch found nothing ─ read() ─► idle

Whoever delivers or waits adds a wakeup to a list of each queue: BRPOP waits for one, and Redis runs the fetch in the
instant in which that ends. Commands are packed here: a fetch has about a hundred arguments, of which all but the last
stay the same, and packing them took redis-py 25 us, this takes 2.4 us. Redis is sent the digest of the script once it
knows the text, and a guess where the next message is: 49 us of its time for a lone message, 101 without the two.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kombu.utils.uuid import uuid
from redis.exceptions import NoScriptError

from graft.config import lua

FETCH: Final = lua.text(__file__, "fetch")
DIGEST: Final = hashlib.sha1(FETCH.encode(), usedforsecurity=False).hexdigest()  # Redis's name for it.


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
        rest = (len(all_keys), *all_keys, len(queues), *names)
        self._count = 2 + len(rest)
        self._by_digest, self._by_text = (
            b"".join(map(_packed, (*how, *rest))) for how in (("EVALSHA", DIGEST), ("EVAL", FETCH))
        )

    def packed(self, *last: object, is_known: bool) -> bytes:
        """The command as it travels; *last* are the arguments that differ: wakeup taken, guess, delivery tags.

        *is_known*: Redis has been sent the script before.
        """
        first = self._by_digest if is_known else self._by_text
        return b"*%d\r\n%b%b" % (self._count + len(last), first, b"".join(map(_packed, last)))

    def place(self, number: int) -> tuple[int, str]:
        """The priority, by its rank, and the queue of the list with this *number*, which counts from 1."""
        rank, queue = divmod(number - 1, len(self.queues))
        return rank, self.queues[queue]

    def number(self, place: tuple[int, str] | None) -> int:
        """The number of the list at *place*; 0 where there is none."""
        if place is None or place[1] not in self.queues:
            return 0
        return place[0] * len(self.queues) + self.queues.index(place[1]) + 1


def _packed(argument: object) -> bytes:
    content = str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(content), content)


class Pending(NamedTuple):
    """A fetch that has not been answered: the tags that its messages would have, and what it asks.

    ``acks`` are messages of earlier fetches that are acknowledged on the way; ``others`` are commands that go first.
    """

    tags: tuple[str, ...]
    command: FetchCommand
    waits: bool
    acks: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def replies_before(self) -> tuple[str, ...]:
        """The commands that are answered before the fetch, in this order."""
        return (*self.others, *(("HDEL", "ZREM") if self.acks else ()), *(("BRPOP",) if self.waits else ()))


class Taken(NamedTuple):
    """A message that has left its list and is on record under *tag*."""

    raw: bytes
    tag: str
    queue: str


class Fetcher:
    """The fetch under way on a connection, and what the last one found."""

    def __init__(self) -> None:
        self.pending: Pending | None = None
        self.waits_next = False  # The last fetch left no message.
        self.unannounced_at = -math.inf  # When a message was found last that its sender had not announced.
        self._next_limit = 1
        self._name, self._numbers = uuid(), itertools.count()  # A random number for each tag would cost 15 us.
        self._is_script_known = False
        self._last_place: tuple[int, str] | None = None  # Where the last message came from.

    def tags(self, limit: int) -> tuple[str, ...]:
        """Delivery tags for the next fetch, of up to *limit* messages."""
        return tuple(f"{self._name}-{next(self._numbers)}" for _ in range(max(1, min(self._next_limit, limit))))

    def send(
        self, connection: Any, command: FetchCommand, tags: tuple[str, ...], wait: float, acks: Sequence[str],
        others: Sequence[tuple[Any, ...]] = (),
    ) -> None:  # fmt: skip
        """Ask for a message for each of *tags*; where the last fetch left none, once there are some, or after *wait*
        seconds.

        *others* are commands that go first. *acks* travel along, and so do those of a fetch that was never answered.
        """
        acks = (*self.unanswered_acks, *acks)
        self.pending = Pending(tags, command, self.waits_next, acks, tuple(str(other[0]) for other in others))
        commands: list[tuple[Any, ...]] = [*others]
        if acks:
            commands += [("HDEL", command.keys.unacked, *acks), ("ZREM", command.keys.unacked_index, *acks)]
        if self.waits_next:
            commands.append(("BRPOP", *command.keys.wakeups, wait))
        before = connection.pack_commands(commands) if commands else []
        guess = command.number(self._last_place)
        fetch = command.packed(int(self.waits_next), guess, *tags, is_known=self._is_script_known)
        connection.send_packed_command([b"".join([*before, fetch])])

    @property
    def unanswered_acks(self) -> tuple[str, ...]:
        """The acknowledgements of a fetch that was not answered; Redis may or may not have heard of them."""
        return self.pending.acks if self.pending else ()

    def read(self, read_reply: Callable[[str], Any], most: int) -> list[Taken]:
        """The messages in the reply. The next fetch asks for more of them, up to *most*, where there were many.

        *read_reply* reads the reply to the command that it is given. Where it raises, the fetch stays pending.
        """
        try:
            announced: Any = True
            for command in self.pending.replies_before if self.pending else ():
                reply = read_reply(command)
                announced = reply if command == "BRPOP" else announced
            has_more, found = read_reply("EVAL")
        except NoScriptError:  # Another server, or one that was told to forget scripts.
            self.pending, self.waits_next, self._is_script_known = None, False, False
            return []
        except Exception:
            self.waits_next = False
            raise
        pending, self.pending = self.pending, None
        self.waits_next, self._is_script_known = not has_more, True
        if pending is None or not found:
            return []
        if announced is None:
            self.unannounced_at = time.monotonic()
        self._next_limit = min(most, 2 * len(found) + 2)
        places = [pending.command.place(number) for number, _ in found]
        self._last_place = places[-1]
        return [Taken(raw, tag, queue) for (_, raw), tag, (_, queue) in zip(found, pending.tags, places, strict=False)]
