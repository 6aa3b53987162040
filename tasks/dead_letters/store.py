"""Dead letters in Redis: whole envelopes that no policy runs again, kept for people to decide.

A dead letter holds all that a replay needs (the signed envelope as it was sent), the error, and how often it ran. The
message is acknowledged afterwards: a crash in between leads to a second writing under the same id, not to a loss.

A failure that no policy was asked to retry is kept too, with the reason ``failed``. It waits for nobody's decision, so
it has an index of its own and alarms nobody, and only the newest are kept (``failed_kept``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from kombu.utils.json import dumps

from graft.config import keys, lua, redis_clock
from graft.config.deployment import settings
from graft.config.redis_client import shared

LETTERS: Final = keys.DEAD_LETTERS
INDEX: Final = f"{LETTERS}:by-time"
FAILED: Final = f"{LETTERS}:failed"  # The index of those with the reason "failed".
FAILED_SIZE: Final = f"{FAILED}:bytes"
FAILED_CAUSE: Final = f"{FAILED}:cause:"
FAILED_BYTES: Final = 64 << 20  # Of all of them together.
FAILED_LARGEST: Final = 1 << 20  # Larger envelopes leave their error, without the items.
FAILED_TASK: Final = ":failed"  # Ends the id of a task's letter: the task itself has failed, and is not buried.
ONE_CAUSE: Final = 10  # A cause may take one part in ten of ``failed_kept``.
LOCK: Final = f"{LETTERS}:lock:"
REPLAYS: Final = f"{LETTERS}:replays:"
LOCK_TTL: Final = 60  # Seconds after which the lock of a replay that was killed ends.
PAGE: Final = 100

# What tells one item's error from another's of the same cause: numbers, addresses, ids, quoted values.
_VALUES: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f-]{16,}|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\"", re.IGNORECASE)

KEEP: Final = lua.load(__file__, "keep")
REMOVE: Final = lua.load(__file__, "remove")
KEEP_FAILED: Final = lua.load(__file__, "keep_failed")

Reason = Literal[
    "poisoned",
    "retries_exhausted",
    "bad_signature",
    "bad_envelope",
    "unreferenceable",
    "time_limit",
    "lost",
    "revoked",
    "expired",
    "failed",
]


@dataclass(frozen=True)
class DeadLetter:
    """One buried envelope. Times are seconds since the epoch. ``unique`` are the terms of a call with a unique key."""

    id: str
    task: str
    queue: str
    reason: Reason
    function: str
    error: str
    traceback: str
    runs: int
    items: int
    envelope: str
    buried_at: float
    fingerprint: str
    unique: list[Any] | None = None

    @classmethod
    def make(
        cls, *, id: str, task: str, queue: str, reason: Reason, function: str, error: BaseException, traceback: str,
        runs: int, items: int, envelope: str, unique: list[Any] | None = None,
    ) -> DeadLetter:  # fmt: skip
        """A dead letter of now; its fingerprint is that of all with the same cause."""
        cause = f"{reason}\0{function}\0{cause_of(error)}"
        return cls(
            id=id,
            task=task,
            queue=queue,
            reason=reason,
            function=function,
            error=f"{type(error).__name__}: {error}"[:4096],
            traceback=traceback[-16384:],
            runs=runs,
            items=items,
            envelope=envelope,
            buried_at=redis_clock.now(),
            fingerprint=hashlib.sha256(cause.encode("utf-8", "replace")).hexdigest()[:12],
            unique=unique,
        )


def cause_of(error: BaseException) -> str:
    """The type and text of *error* without what differs from item to item."""
    return f"{type(error).__name__}\0{without_values(str(error))}"


def without_values(text: str) -> str:
    """The text of an error without its numbers, ids and quoted values: the same for all of one cause."""
    return _VALUES.sub("*", text[:500])[:200]


def bury(letter: DeadLetter, client: Any = None, *, delivery: str = "") -> bool:
    """Keep *letter*; one with the same id is replaced, and keeps its place in the order of burial.

    False where it is not kept: the message of *delivery*, whose run it ends, went back to its queue.
    """
    if letter.reason == "failed":
        _keep_failed(client or shared(), letter)
        return True
    names = [LETTERS, INDEX, FAILED, keys.RETURNED + delivery]
    text = json.dumps(asdict(letter))
    return bool(KEEP(names, [letter.id, text, letter.buried_at, delivery], client or shared()))


def take_back(letter_id: str) -> None:
    """Remove the letter of a task that has succeeded after all: a run before had buried it, and died then."""
    with shared().pipeline() as pipe:
        pipe.hdel(LETTERS, letter_id)
        pipe.zrem(INDEX, letter_id)
        pipe.execute()


def _keep_failed(client: Any, letter: DeadLetter | None = None) -> int:
    """Keep *letter*, and let go of the oldest beyond the bounds; how many went."""
    if letter is not None and len(letter.envelope) > FAILED_LARGEST:
        letter = replace(letter, envelope="")
    config = settings()
    ttl = int(config.dead_letter_ttl)
    new = ("", "", 0.0) if letter is None else (letter.id, json.dumps(asdict(letter)), letter.buried_at)
    per_cause = max(1, config.failed_kept // ONE_CAUSE)
    keys = [LETTERS, INDEX, FAILED, FAILED_SIZE, FAILED_CAUSE + (letter.fingerprint if letter else "")]
    before = redis_clock.now() - ttl
    return int(KEEP_FAILED(keys, [*new, per_cause, config.failed_kept, FAILED_BYTES, before, ttl], client))


def count() -> int:
    """How many dead letters wait for somebody's decision; those of the reason ``failed`` do not."""
    return int(shared().zcard(INDEX))


def failed_count() -> int:
    """How many letters of the reason ``failed`` are kept."""
    return int(shared().zcard(FAILED))


def newest(limit: int = 100) -> list[DeadLetter]:
    """The dead letters buried last, newest first, without those of the reason ``failed``."""
    ids = shared().zrevrange(INDEX, 0, limit - 1)
    found = shared().hmget(LETTERS, ids) if ids else []
    return [DeadLetter(**json.loads(text)) for text in found if text]


def ids(since: float = 0.0, *, failed: bool = False) -> list[str]:
    """The ids of all dead letters buried at or after *since*, the oldest first; with *failed* also those."""
    found = shared().zrangebyscore(INDEX, since, "+inf", withscores=True)
    if failed:
        found = sorted(
            [*found, *shared().zrangebyscore(FAILED, since, "+inf", withscores=True)], key=lambda one: one[1]
        )
    return [name.decode() for name, _ in found]


def read(wanted: Sequence[str]) -> Iterator[DeadLetter]:
    """The dead letters of those ids that are still kept, a page at a time: each may hold a megabyte."""
    for at in range(0, len(wanted), PAGE):
        for text in shared().hmget(LETTERS, wanted[at : at + PAGE]):
            if text is not None:
                yield DeadLetter(**json.loads(text))


def of_call(task_id: str) -> list[str]:
    """The ids of the letters of a task or envelope: its own, and those of some of its items."""
    found = {
        name.decode()
        for index in (INDEX, FAILED)
        for name, _ in shared().zscan_iter(index, match=f"{_escaped(task_id)}*", count=1000)
    }
    return sorted(name for name in found if name == task_id or name.startswith(f"{task_id}:"))


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


def lock(letter_id: str) -> bool:
    """Lock a dead letter for its replay; False when another process has. Two that replay at once share the work."""
    return bool(shared().set(LOCK + letter_id, 1, nx=True, ex=LOCK_TTL))


def unlock(letter_id: str) -> None:
    shared().delete(LOCK + letter_id)


def remove(letter: DeadLetter) -> bool:
    """Remove *letter* and unlock it; False when it was removed before, or replaced by a later one."""
    keys = [LETTERS, INDEX, LOCK + letter.id, FAILED, FAILED_SIZE]
    return bool(REMOVE(keys, [letter.id, json.dumps(asdict(letter))], shared()))


def note_replay(letter_id: str) -> None:
    """Count a replay, for those who find the dead letter buried again."""
    with shared().pipeline(transaction=False) as pipe:
        pipe.incr(REPLAYS + letter_id)
        pipe.expire(REPLAYS + letter_id, int(settings().dead_letter_ttl))
        pipe.execute()


def replays(wanted: Sequence[str]) -> list[int]:
    """How often each of these dead letters has been replayed before."""
    return [int(count or 0) for count in shared().mget([REPLAYS + each for each in wanted])] if wanted else []


def message_text(args: Any, kwargs: Mapping[str, Any]) -> str:
    """The arguments of an ordinary task for a dead letter; values that JSON cannot carry are text for people."""
    try:
        return str(dumps({"args": args, "kwargs": kwargs}))
    except (TypeError, ValueError):
        return json.dumps({"args": args, "kwargs": kwargs, "lossy": True}, default=repr)


def prune() -> int:
    """Remove the dead letters that are older than ``dead_letter_ttl``; how many."""
    client = shared()
    old = client.zrangebyscore(INDEX, 0, redis_clock.now() - settings().dead_letter_ttl, start=0, num=1000)
    if old:
        with client.pipeline() as pipe:
            pipe.hdel(LETTERS, *old)
            pipe.zrem(INDEX, *old)
            pipe.execute()
    return len(old) + _keep_failed(client)
