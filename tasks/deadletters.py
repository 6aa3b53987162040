"""Dead letters: whole envelopes that no policy will run again, kept until somebody looks.

A letter holds what is needed to run the work again (the signed envelope as it was sent), why it died, and how often it
had run. Letters are written before the message is acknowledged: a crash in between leaves a second writing of the same
id, not a loss.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Final, Literal

from graft.config.redis_client import shared
from graft.config.settings import settings

LETTERS: Final = "graft:dead-letters"
INDEX: Final = "graft:dead-letters:by-time"

Reason = Literal["poisoned", "retries_exhausted", "bad_signature", "bad_envelope", "unreferenceable", "time_limit"]


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
        """A letter written now; its fingerprint groups letters that died of the same cause."""
        cause = f"{reason}\0{function}\0{type(error).__name__}\0{str(error)[:200]}"
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


def bury(letter: DeadLetter) -> None:
    """Keep *letter*; one with the same id is replaced, its first date of death kept."""
    with shared().pipeline() as pipe:
        pipe.hset(LETTERS, letter.id, json.dumps(asdict(letter)))
        pipe.zadd(INDEX, {letter.id: letter.buried_at}, nx=True)
        pipe.execute()


def count() -> int:
    return int(shared().zcard(INDEX))


def newest(limit: int = 100) -> list[DeadLetter]:
    """The letters buried last, newest first."""
    ids = shared().zrevrange(INDEX, 0, limit - 1)
    found = shared().hmget(LETTERS, ids) if ids else []
    return [DeadLetter(**json.loads(text)) for text in found if text]


def prune() -> int:
    """Remove letters older than the deployment keeps them; how many."""
    client = shared()
    old = client.zrangebyscore(INDEX, 0, time.time() - settings().dead_letter_ttl, start=0, num=1000)
    if old:
        with client.pipeline() as pipe:
            pipe.hdel(LETTERS, *old)
            pipe.zrem(INDEX, *old)
            pipe.execute()
    return len(old)
