"""Messages whose time has not come wait in Redis, in the order of their times, and in no worker's memory.

    sent with an eta ── further off than GRAFT_DUE_AFTER ──► due set ── its time has come ──► its queue
                     └─ sooner ──► its queue; a worker holds it, as Celery does

One of the hardened workers moves what is due, under a lease, in one script: a message is in one of both places,
whenever its mover dies. Where no hardened worker was there for a day, messages go to their queues at once. Times are
Redis's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from graft.config import keys, lua, redis_clock
from graft.config.deployment import settings

TIMES: Final = keys.DUE
NAMES: Final = [TIMES, f"{TIMES}:messages", f"{TIMES}:counts", f"{TIMES}:mover"]
MESSAGES: Final = NAMES[1]
COUNTS: Final = NAMES[2]
KEPT: Final = NAMES[:3]  # What is gone when nothing waits.
AT_ONCE: Final = 500  # Messages in one script: some milliseconds of Redis's time.
LEASE_MS: Final = 3000
PAGE: Final = 200

DUE: Final = lua.load(__file__, "due")


class Placed(NamedTuple):
    """A message as *text*, and the list that it goes to."""

    id: str
    queue: str
    list: str
    wakeups: str
    text: str


def due_of(message: Any) -> float | None:
    """When *message* is due, in seconds since the epoch, if it is to wait here for that."""
    eta = (message.get("headers") or {}).get("eta")
    if not eta or not (after := settings().due_after):
        return None
    try:
        due = datetime.fromisoformat(eta).timestamp()
    except (ValueError, TypeError):
        return None
    return due if due - redis_clock.now() > after else None


def put(messages: Sequence[tuple[float, Placed]], wakeup_ms: int, client: Any) -> None:
    """Keep *messages* until their times. A round trip for some hundred of them."""
    for at in range(0, len(messages), AT_ONCE):
        arguments: list[Any] = ["put", wakeup_ms]
        for due, each in messages[at : at + AT_ONCE]:
            arguments += (due, *each)
        DUE(NAMES, arguments, client)


def move(holder: str, wakeup_ms: int, client: Any) -> tuple[int, float | None]:
    """Move what is due, some hundred messages at most: how many, and the seconds until the next is.

    -1 where somebody else than *holder* moves.
    """
    moved, wait = DUE(NAMES, ["move", holder, LEASE_MS, AT_ONCE, wakeup_ms], client)
    return int(moved), float(wait) if wait else None


def remove(ids: Sequence[str], client: Any) -> dict[str, bytes]:
    """Take those of *ids* out that wait for their first run; their messages."""
    found = DUE(NAMES, ["remove", *ids], client) if ids else []
    return {name.decode(): raw for name, raw in zip(found[::2], found[1::2], strict=True)}


def mentioning(text: str, client: Any) -> Iterator[tuple[str, bytes]]:
    """The messages that mention *text*, by id. The search runs inside Redis."""
    cursor = b"0"
    while True:
        cursor, *found = DUE(NAMES, ["mentioning", cursor, text, PAGE], client)
        yield from ((name.decode(), raw) for name, raw in zip(found[::2], found[1::2], strict=True))
        if cursor == b"0":
            return


def times(ids: Sequence[str], client: Any) -> dict[str, float]:
    """When those of *ids* are due that wait here."""
    found = client.zmscore(TIMES, ids) if ids else []
    return {name: score for name, score in zip(ids, found, strict=True) if score is not None}


def counts(client: Any) -> dict[str, int]:
    """How many messages wait for their time, by queue."""
    return {queue.decode("utf-8", "replace"): int(count) for queue, count in client.hgetall(COUNTS).items()}


def first(client: Any) -> float | None:
    """When the first of them is due; None where none waits."""
    found = client.zrange(TIMES, 0, 0, withscores=True)
    return float(found[0][1]) if found else None
