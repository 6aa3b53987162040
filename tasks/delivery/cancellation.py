"""The list of cancelled batches and tasks: what has not begun of them does not run, on any worker, across restarts.

A worker keeps a filter of the list in memory that all its processes share, so that a run need not ask Redis whether it
was cancelled: the filter says "surely not", or "perhaps", and only then Redis is asked. The worker's main process adds
what is new to it four times a second (workers/bootsteps/cancel_watch.py).
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Sequence
from typing import Any, Final

from graft.config import keys, lua
from graft.config.deployment import existing, part
from graft.config.redis_client import shared

CANCELLED: Final = keys.CANCELLED
CANCEL: Final = lua.load(__file__, "cancel")
MOST: Final = 100_000  # Entries of the list; the oldest are dropped.
BITS: Final = 1 << 16


class SharedFilter:
    """Which ids may be on the list, as this worker's main process knows it, for that process and all it forks.

    One bit for each id: 1,000 cancelled ids let one run in 66 ask Redis in vain.
    """

    def __init__(self) -> None:
        self._bits = mmap.mmap(-1, BITS // 8)  # Anonymous, and shared with the processes forked later.
        self._seen = 0  # The number of the newest entry that is in.

    def after_fork(self) -> None:
        """A pool process reads what its parent writes."""

    def __contains__(self, name: str) -> bool:
        byte, bit = divmod(zlib.crc32(name.encode()) % BITS, 8)
        return bool(self._bits[byte] >> bit & 1)

    def add(self, name: str) -> None:
        byte, bit = divmod(zlib.crc32(name.encode()) % BITS, 8)
        self._bits[byte] |= 1 << bit

    def update(self, client: Any) -> None:
        """Add what was cancelled since the last time."""
        newest = client.zrange(CANCELLED, -1, -1, withscores=True)
        number = int(newest[0][1]) if newest else 0
        if number < self._seen:  # The list has begun anew: Redis was emptied, or the list had expired.
            self._seen = 0
        if number > self._seen:
            for name in client.zrangebyscore(CANCELLED, f"({self._seen}", "+inf"):
                self.add(name.decode())
        self._seen = number


def keep_filter() -> SharedFilter:
    """In a worker, before its pool processes are forked: have a filter from now on."""
    return part(SharedFilter)


def cancel(name: str, ttl: float) -> None:
    """Put the batch or task *name* on the list, which stays for at least *ttl* seconds."""
    CANCEL([CANCELLED], [name, MOST, max(1, int(ttl))], shared())


def may_be_cancelled(name: str) -> bool:
    """Whether Redis has to be asked about *name*. A worker learns of a cancelled one a quarter of a second late."""
    known = existing(SharedFilter)
    return known is None or name in known


def is_cancelled(name: str) -> bool:
    """Whether the batch or task *name* is on the list, as far as this worker knows."""
    return may_be_cancelled(name) and shared().zscore(CANCELLED, name) is not None


def cancelled(names: Sequence[str], client: Any) -> set[str]:
    """Those of *names* that are on the list."""
    scores = client.zmscore(CANCELLED, names) if names else []
    return {name for name, score in zip(names, scores, strict=True) if score is not None}
