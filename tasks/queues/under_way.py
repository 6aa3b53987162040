"""The calls that have not ended: what waits for its time, what waits on a queue, what a worker holds.

Read from the messages themselves, some hundred at a time inside Redis: nothing is noted for it when a task is sent or
begins. The words are those of ``graft.status_of``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from graft.config.transport import due
from graft.tasks.messages.message_format import UNACKED
from graft.tasks.queues import existing, peek

State = Literal["running", "queued", "scheduled"]
STATES: Final[tuple[State, ...]] = ("running", "queued", "scheduled")
FIELDS: Final = 7  # Texts that the script gives for each message.


@dataclass(frozen=True)
class CallUnderWay:
    """One call or envelope that has not ended. ``sent`` and ``due`` are seconds since the epoch, where it says so.

    ``running``: a worker holds its message. All else is what the message says of itself.
    """

    id: str
    function: str
    items: int
    batch: str
    queue: str
    state: State
    sent: float | None
    due: float | None


@dataclass(frozen=True)
class Search:
    """The calls that were found: what workers hold first, then what is taken next, then what is due next.

    ``seen`` messages were looked at; not ``is_whole``: there may be more.
    """

    found: tuple[CallUnderWay, ...]
    seen: int
    is_whole: bool


def search(
    holds: Callable[[CallUnderWay], bool],
    limit: int,
    client: Any,
    *,
    queues: Sequence[str],
    states: Collection[str] = STATES,
    budget: float = 0.5,
) -> Search:
    """The first *limit* calls under way that meet *holds*, searched for about *budget* seconds.

    *queues* are those in which something waits; *client* is one of the broker's Redis.
    """
    deadline = time.monotonic() + budget
    found: list[CallUnderWay] = []
    seen = 0
    for page in _pages(client, queues, states):
        for one in page:
            seen += 1
            if holds(one):
                found.append(one)
                if len(found) == limit:
                    return Search(tuple(found), seen, False)
        if time.monotonic() > deadline:
            return Search(tuple(found), seen, False)
    return Search(tuple(found), seen, True)


def _pages(client: Any, queues: Sequence[str], states: Collection[str]) -> Iterator[list[CallUnderWay]]:
    if "running" in states:
        yield from _in_hash(UNACKED, "running", client)
    if "queued" in states or "scheduled" in states:  # A time that is near waits on a queue, too.
        for queue in queues:
            for key in existing.lengths([queue], client):
                yield from ([one for one in page if one.state in states] for page in _in_list(key, queue, client))
    if "scheduled" in states:
        yield from _in_hash(due.MESSAGES, "scheduled", client)


def _in_list(key: str, queue: str, client: Any) -> Iterator[list[CallUnderWay]]:
    start, size = 0, peek.CHUNK
    while size == peek.CHUNK:
        size, page = peek.SEARCH([], ["headers_in_list", "", peek.CHUNK, key, start], client)
        yield _read(page, "queued", queue)
        start += peek.CHUNK


def _in_hash(key: str, state: State, client: Any) -> Iterator[list[CallUnderWay]]:
    cursor = b"0"
    while True:
        cursor, page = peek.SEARCH([], ["headers_in_hash", "", peek.CHUNK, key, cursor], client)
        yield _read(page, state)
        if cursor == b"0":
            return


def _read(texts: Sequence[bytes], state: State, queue: str = "") -> list[CallUnderWay]:
    shown = [peek.printable(text.decode("utf-8", "replace")) for text in texts]
    return [_call(shown[at : at + FIELDS], state, queue) for at in range(0, len(shown), FIELDS)]


def _call(texts: Sequence[str], state: State, queue: str) -> CallUnderWay:
    name, task, label, group, sent, eta, kept_queue = texts
    labelled = peek.labelled(label)
    function, items = labelled or (task, 1)
    when = _moment(eta)
    if state == "queued" and when is not None and when > time.time():
        state = "scheduled"
    return CallUnderWay(name, function, items, group, queue or kept_queue, state, _seconds(sent), when)


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _moment(eta: str) -> float | None:
    try:
        return datetime.fromisoformat(eta).timestamp() if eta else None
    except ValueError:
        return None
