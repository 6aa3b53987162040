"""The flag that keeps what has not begun of a batch from running, on every worker, across restarts.

    some       the items in the sets beside the flag do not begin
    1          no item begins                               (the text of earlier versions too)
    running    no item begins, and those that run are ended

A flag may also be raised under the id of one envelope or one task. Workers look at it when a run begins, and five times
a second while one goes on (tasks/running/cancel_watch.py).

They need not ask Redis for it. Every name under which a flag is raised is put on a list; a worker keeps a filter of
that list in memory that all its processes share. The filter says "surely not", or "perhaps"; only then Redis is asked.
The worker's main process adds what is new four times a second (workers/bootsteps/cancel_filter.py).
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config import keys, lua
from graft.config.deployment import existing, part
from graft.config.redis_client import shared

CANCEL_KEY: Final = keys.CANCEL
BUCKET: Final = 4096  # Positions whose flags share a set: a stream of calls may go on for months.
SOME: Final = b"some"
ALL: Final = b"1"
RUNNING: Final = b"running"
RAISE: Final = lua.load(__file__, "raise_flag")
LIST: Final = keys.CANCELLED
MOST: Final = 100_000  # Names on the list; the oldest are dropped.
BITS: Final = 1 << 16


@dataclass(frozen=True)
class Cancelled:
    """What is cancelled of one envelope: everything, what runs too, or the items at some positions."""

    everything: bool = False
    running: bool = False
    positions: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return self.everything or bool(self.positions)

    def includes(self, position: int) -> bool:
        """Whether the item at *position* is not to begin."""
        return self.everything or position in self.positions


NOTHING: Final = Cancelled()


class SharedFilter:
    """Under which names a flag may be up, as this worker's main process knows it, for that process and all it forks.

    One bit for each name: 1,000 cancelled ones let one run in 66 ask Redis in vain.
    """

    def __init__(self) -> None:
        self._bits = mmap.mmap(-1, BITS // 8)  # Anonymous, and shared with the processes forked later.
        self._seen = 0  # The number of the newest name that is in.

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
        newest = client.zrange(LIST, -1, -1, withscores=True)
        number = int(newest[0][1]) if newest else 0
        if number < self._seen:  # The list has begun anew: Redis was emptied, or the list had expired.
            self._seen = 0
        if number > self._seen:
            for name in client.zrangebyscore(LIST, f"({self._seen}", "+inf"):
                self.add(name.decode())
        self._seen = number


def keep_filter() -> SharedFilter:
    """In a worker, before its pool processes are forked: have a filter from now on."""
    return part(SharedFilter)


def may_be_cancelled(*names: str) -> bool:
    """Whether Redis has to be asked about any of *names*. A worker learns of a flag a quarter of a second late."""
    known = existing(SharedFilter)
    return known is None or any(name in known for name in names)


def cancel(batch: str, ttl: float, *, running: bool = False) -> None:
    """Raise the flag of *batch* for *ttl* seconds; a flag is never lowered by another one."""
    _raise(batch, RUNNING if running else ALL, ttl, shared())


def cancel_items(batch: str, positions: Iterable[int], ttl: float) -> None:
    """Keep the items at *positions* of *batch* from beginning, for *ttl* seconds."""
    with shared().pipeline(transaction=False) as pipe:
        for position in positions:
            pipe.sadd(_bucket(batch, position), position)
            pipe.expire(_bucket(batch, position), _expiry(ttl))
        _raise(batch, SOME, ttl, pipe)
        pipe.execute()


def _raise(name: str, flag: bytes, ttl: float, client: Any) -> None:
    RAISE([CANCEL_KEY + name, LIST], [flag, _expiry(ttl), name, MOST], client)


def is_cancelled(batch: str) -> bool:
    """Whether all of *batch* is cancelled."""
    return may_be_cancelled(batch) and is_whole(shared().get(CANCEL_KEY + batch))


def of_envelope(batch: str, envelope_id: str, positions: Sequence[int], client: Any) -> Cancelled:
    """What is cancelled of the items at *positions*, as far as this worker knows."""
    if not may_be_cancelled(batch, envelope_id):
        return NOTHING
    return read(client.mget(flag_keys(batch, envelope_id)), batch, positions, client)


def is_whole(flag: bytes | None) -> bool:
    """Whether *flag* stands for a whole batch."""
    return flag is not None and flag != SOME


def flag_keys(batch: str, envelope_id: str) -> list[str]:
    """The keys of the flags that concern an envelope."""
    return [CANCEL_KEY + batch, CANCEL_KEY + envelope_id]


def read(flags: Sequence[bytes | None], batch: str, positions: Sequence[int], client: Any) -> Cancelled:
    """What *flags*, those of :func:`flag_keys`, say of the items at *positions*. Usually without a round trip."""
    if any(is_whole(flag) for flag in flags if flag):
        return Cancelled(True, RUNNING in flags)
    if SOME not in flags:
        return NOTHING
    buckets = sorted({_bucket(batch, position) for position in positions})
    return Cancelled(positions=frozenset(map(int, client.sunion(buckets))).intersection(positions))


def _bucket(batch: str, position: int) -> str:
    return f"{CANCEL_KEY}{batch}:{position // BUCKET}"


def _expiry(ttl: float) -> int:
    return max(1, int(ttl))
