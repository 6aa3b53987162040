"""Dead letters in Redis: whole envelopes that no policy runs again, kept for people to decide.

A dead letter holds all that a replay needs (the signed envelope as it was sent), the error, and how often it ran. The
message is acknowledged afterwards: a crash in between leads to a second writing under the same id, not to a loss.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from kombu.utils.json import dumps

from graft.config import keys, lua
from graft.config.deployment import settings
from graft.config.redis_client import shared

LETTERS: Final = keys.DEAD_LETTERS
INDEX: Final = f"{LETTERS}:by-time"
LOCK: Final = f"{LETTERS}:lock:"
REPLAYS: Final = f"{LETTERS}:replays:"
LOCK_TTL: Final = 60  # Seconds after which the lock of a replay that was killed ends.
PAGE: Final = 100

# What tells one item's error from another's of the same cause: numbers, addresses, ids, quoted values.
_VALUES: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f-]{16,}|\d+(?:\.\d+)?|'[^']*'|\"[^\"]*\"", re.IGNORECASE)

REMOVE: Final = lua.load(__file__, "remove")

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
]


@dataclass(frozen=True)
class DeadLetter:
    """One buried envelope. Times are seconds since the epoch."""

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

    @classmethod
    def make(
        cls, *, id: str, task: str, queue: str, reason: Reason, function: str, error: BaseException, traceback: str,
        runs: int, items: int, envelope: str,
    ) -> DeadLetter:  # fmt: skip
        """A dead letter of now; its fingerprint is that of all with the same cause."""
        cause = f"{reason}\0{function}\0{type(error).__name__}\0{_VALUES.sub('*', str(error)[:500])[:200]}"
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
            buried_at=time.time(),
            fingerprint=hashlib.sha256(cause.encode("utf-8", "replace")).hexdigest()[:12],
        )


def bury(letter: DeadLetter, client: Any = None) -> None:
    """Keep *letter*; one with the same id is replaced, and keeps its place in the order of burial."""
    with (client or shared()).pipeline() as pipe:
        pipe.hset(LETTERS, letter.id, json.dumps(asdict(letter)))
        pipe.zadd(INDEX, {letter.id: letter.buried_at}, nx=True)
        pipe.execute()


def count() -> int:
    return int(shared().zcard(INDEX))


def newest(limit: int = 100) -> list[DeadLetter]:
    """The dead letters buried last, newest first."""
    ids = shared().zrevrange(INDEX, 0, limit - 1)
    found = shared().hmget(LETTERS, ids) if ids else []
    return [DeadLetter(**json.loads(text)) for text in found if text]


def ids(since: float = 0.0) -> list[str]:
    """The ids of all dead letters buried at or after *since*, the oldest first."""
    return [name.decode() for name in shared().zrangebyscore(INDEX, since, "+inf")]


def read(wanted: Sequence[str]) -> Iterator[DeadLetter]:
    """The dead letters of those ids that are still kept, a page at a time: each may hold a megabyte."""
    for at in range(0, len(wanted), PAGE):
        for text in shared().hmget(LETTERS, wanted[at : at + PAGE]):
            if text is not None:
                yield DeadLetter(**json.loads(text))


def lock(letter_id: str) -> bool:
    """Lock a dead letter for its replay; False when another process has. Two that replay at once share the work."""
    return bool(shared().set(LOCK + letter_id, 1, nx=True, ex=LOCK_TTL))


def unlock(letter_id: str) -> None:
    shared().delete(LOCK + letter_id)


def remove(letter: DeadLetter) -> bool:
    """Remove *letter* and unlock it; False when it was removed before, or replaced by a later one."""
    keys = [LETTERS, INDEX, LOCK + letter.id]
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
    old = client.zrangebyscore(INDEX, 0, time.time() - settings().dead_letter_ttl, start=0, num=1000)
    if old:
        with client.pipeline() as pipe:
            pipe.hdel(LETTERS, *old)
            pipe.zrem(INDEX, *old)
            pipe.execute()
    return len(old)
