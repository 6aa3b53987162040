"""The flag that keeps what has not begun of a batch from running, on every worker, across restarts.

    some       the items in the sets beside the flag do not begin
    1          no item begins                               (the text of earlier versions too)
    running    no item begins, and those that run are ended

A flag may also be raised under the id of one envelope or one task. Workers ask for it when a run begins, and five times
a second while one goes on (tasks/running/cancel_watch.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft.config import keys, lua
from graft.config.redis_client import shared

CANCEL_KEY: Final = keys.CANCEL
BUCKET: Final = 4096  # Positions whose flags share a set: a stream of calls may go on for months.
SOME: Final = b"some"
ALL: Final = b"1"
RUNNING: Final = b"running"
RAISE: Final = lua.load(__file__, "raise_flag")


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


def cancel(batch: str, ttl: float, *, running: bool = False) -> None:
    """Raise the flag of *batch* for *ttl* seconds; a flag is never lowered by another one."""
    RAISE([CANCEL_KEY + batch], [RUNNING if running else ALL, _expiry(ttl)], shared())


def cancel_items(batch: str, positions: Iterable[int], ttl: float) -> None:
    """Keep the items at *positions* of *batch* from beginning, for *ttl* seconds."""
    with shared().pipeline(transaction=False) as pipe:
        for position in positions:
            pipe.sadd(_bucket(batch, position), position)
            pipe.expire(_bucket(batch, position), _expiry(ttl))
        RAISE([CANCEL_KEY + batch], [SOME, _expiry(ttl)], pipe)
        pipe.execute()


def is_cancelled(batch: str) -> bool:
    """Whether all of *batch* is cancelled."""
    return is_whole(shared().get(CANCEL_KEY + batch))


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
