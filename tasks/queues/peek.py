"""Messages that wait in a queue, read without being taken, and without any of their content being unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

from graft.config import lua
from graft.config.redis_client import broker
from graft.config.transport import task_validation
from graft.tasks.messages.message_format import UNACKED, lists, waits_since
from graft.tasks.queues import existing

PAGE: Final = 100
CHUNK: Final = 200
AT_ONCE: Final = 400  # Messages, or so, that one script reads; on many lists few messages wait.
LONGEST: Final = 5000  # Messages of one list that are read for the batches in it.

# What the senders of envelopes call their arguments: "(module:function, 20 items from 40)".
_LABEL: Final = re.compile(r"\((?P<function>.+), (?P<items>\d+) items from \d+\)")

SEARCH: Final = lua.load(__file__, "peek")


@dataclass(frozen=True)
class Waiting:
    """One message that waits. ``sent_at``, or when it was due, is seconds since the epoch, where the sender said so.

    All of it is what the message says of itself: true where ``flaw``, the reason why workers would not run it, is "".
    """

    id: str
    task: str
    what: str
    priority: int
    size: int
    sent_at: float | None
    function: str = ""
    items: int = 1
    batch: str = ""
    flaw: str = ""


def peek(queue: str, limit: int = 10, client: Any = None) -> list[Waiting]:
    """The messages that are taken next, in that order. They stay where they are."""
    found: list[Waiting] = []
    steps = {key: step for step, key in enumerate(lists(queue))}
    with broker() if client is None else nullcontext(client) as connected:
        for key in existing.lengths([queue], connected):
            if len(found) < limit:
                # Messages come in on the left and are taken on the right.
                page = connected.lrange(key, -(limit - len(found)), -1)
                found += [replace(read(raw, steps[key]), flaw=task_validation.flaw(raw)) for raw in reversed(page)]
    return found


def read(raw: bytes, priority: int) -> Waiting:
    """What the message in *raw* says of itself, fit for a terminal."""
    try:
        headers = json.loads(raw)["headers"]
        task, what, since = str(headers["task"]), str(headers.get("argsrepr") or ""), waits_since(headers)
        label = _LABEL.fullmatch(what)
        return Waiting(
            printable(str(headers["id"])), printable(task), printable(what), priority, len(raw),
            since, printable(label["function"] if label else task),
            int(label["items"]) if label else 1, printable(str(headers.get("group") or "")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Waiting("?", "not a task", printable(raw[:60].decode("utf-8", "replace")), priority, len(raw), None)


def printable(text: str) -> str:
    """*text* without what a terminal would obey: whoever can write to a queue must not write to the reader's screen."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:1000])


def labelled(arguments: str) -> tuple[str, int] | None:
    """The callable and the number of items that an envelope's arguments, as they are shown, stand for."""
    found = _LABEL.search(printable(arguments))
    return (found["function"], int(found["items"])) if found else None


def mentioning(text: str, lengths: Mapping[str, int], client: Any) -> Iterator[tuple[str, bytes]]:
    """The messages of these lists that mention *text*, with the list that each is in. The search runs inside Redis."""
    for key, found in _in_lists("mentioning", text, lengths, client):
        yield from ((key, raw) for raw in found)


def _in_lists(
    operation: str, text: str, lengths: Mapping[str, int], client: Any, longest: float = inf
) -> Iterator[tuple[str, list[bytes]]]:
    """What *operation* finds on each page of each list, of which no more than *longest* messages are looked at."""
    # From the end that new messages come to: they push the others ahead of the search, never past it. What the caller
    # takes out meanwhile moves the rest back; a second search finds what was passed over then.
    left = dict.fromkeys(lengths, 0)
    while left:
        group, size = [], 0
        for key, start in left.items():
            group.append((key, start))
            size += min(CHUNK, lengths[key])
            if size >= AT_ONCE:
                break
        pages = SEARCH([], [operation, text, CHUNK, *(part for pair in group for part in pair)], client)
        for (key, start), (count, found) in zip(group, pages, strict=True):
            yield key, found
            if count < CHUNK or start + CHUNK >= longest:
                del left[key]
            else:
                left[key] = start + CHUNK


def held(text: str, client: Any) -> int:
    """How many messages that workers hold mention *text*."""
    cursor, total = b"0", 0
    while True:
        cursor, found = SEARCH([], ["counting", text, CHUNK, UNACKED, cursor], client)
        total += int(found)
        if cursor == b"0":
            return total


@dataclass
class Sent:
    """What is in Redis of one batch: messages that wait, those that workers hold, and when the first was sent."""

    function: str = ""
    waiting: int = 0
    held: int = 0
    since: float = float("inf")


def batches(client: Any) -> dict[str, Sent]:
    """What is in Redis of each batch, whether its caller lives or not. Of a long queue the newest messages are read."""
    found: dict[str, Sent] = {}

    def note(fields: list[bytes], *, is_held: bool) -> None:
        parts = iter(fields)
        for group, shown, sent in zip(parts, parts, parts, strict=True):
            one = found.setdefault(printable(group.decode("utf-8", "replace")), Sent())
            named = _LABEL.fullmatch(printable(shown.decode("utf-8", "replace")))
            one.function = named["function"] if named else one.function
            one.since = min(one.since, float(sent))
            one.held += is_held
            one.waiting += not is_held

    lengths = existing.lengths(existing.filled(existing.names(client), client), client)
    for _, page in _in_lists("envelopes_in_lists", "", lengths, client, LONGEST):
        note(page, is_held=False)
    cursor = b"0"
    while True:
        cursor, page = SEARCH([], ["envelopes_in_hash", "", CHUNK, UNACKED, cursor], client)
        note(page, is_held=True)
        if cursor == b"0":
            return found


def every(queue: str, client: Any = None) -> Iterator[Waiting]:
    """All messages that wait in *queue* now, roughly: workers take them meanwhile."""
    steps = {key: step for step, key in enumerate(lists(queue))}
    with broker() if client is None else nullcontext(client) as connected:
        for key, length in existing.lengths([queue], connected).items():
            for at in range(0, length, PAGE):
                yield from (read(raw, steps[key]) for raw in connected.lrange(key, at, at + PAGE - 1))


@dataclass
class Group:
    """The waiting messages of one callable. ``oldest`` is when the first of them was sent, where they say so."""

    function: str
    messages: int = 0
    items: int = 0
    bytes: int = 0
    oldest: float | None = None

    def add(self, one: Waiting) -> None:
        self.messages += 1
        self.items += one.items
        self.bytes += one.size
        if one.sent_at is not None:
            self.oldest = one.sent_at if self.oldest is None else min(self.oldest, one.sent_at)


def grouped(messages: Iterable[Waiting]) -> list[Group]:
    """*messages* by callable, those with the most first."""
    groups: dict[str, Group] = {}
    for one in messages:
        name = one.function or one.task
        groups.setdefault(name, Group(name)).add(one)
    return sorted(groups.values(), key=lambda group: -group.messages)
