"""The lease of the one process that feeds durable batches, and the token by which a late feeder is refused.

A feeder that was frozen, or cut off, may go on after another has taken over. Each write of a feeder bears the token of
its lease: Redis refuses to note or publish anything under an older one (feeding/note_sent.lua,
transport/fair_order.lua).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from graft.config import lua
from graft.config.deployment import settings
from graft.config.redis_client import broker
from graft.config.transport.fence import Fence
from graft.tasks.durable.record import OPEN, RECORD

LEASE: Final = f"{RECORD}feeder"
LAST: Final = f"{RECORD}token"
FED_AT: Final = f"{LAST}:at"  # When the last feeder had the lease.
FENCE: Final = f"{RECORD}fence"  # On the broker, which may be another server.
LASTS_MS: Final = 4000
RENEW_EVERY: Final = 1.0

CHANGE: Final = lua.load(__file__, "lease")


@dataclass(frozen=True)
class FeederLease:
    """Says that its holder feeds. Times are Redis's own."""

    token: str

    @property
    def fence(self) -> Fence:
        """What the broker compares before it takes a message of this holder."""
        return Fence(FENCE, self.token)

    @classmethod
    def take(cls, holder: str, client: Any) -> FeederLease | None:
        """The lease for *holder*; None where somebody has it."""
        with broker() as queue_side:
            smallest = int(queue_side.get(FENCE) or 0) + 1
            taken = CHANGE([LEASE, LAST], ["take", holder, LASTS_MS, smallest], client)
            if taken == b"0":
                return None
            CHANGE([FENCE], ["fence", taken], queue_side)
        return cls(taken.decode())

    def renew(self, client: Any) -> bool:
        """Whether this holder still has it, for a while from now."""
        is_ours = bool(CHANGE([LEASE, LAST], ["renew", self.token, LASTS_MS], client))
        if is_ours and settings().backend_url != settings().broker_url:
            with broker() as queue_side:  # It may have been emptied.
                CHANGE([FENCE], ["fence", self.token], queue_side)
        return is_ours

    def release(self, client: Any) -> None:
        CHANGE([LEASE, LAST], ["release", self.token], client)


def is_wanted(client: Any) -> bool:
    """Whether there is something to feed, and nobody who does. Usually one command: there is nothing."""
    if not client.exists(OPEN):
        return False
    with client.pipeline(transaction=False) as pipe:
        pipe.zrange(OPEN, 0, 0, withscores=True)
        pipe.exists(LEASE)
        pipe.time()
        first, is_held, (seconds, micros) = pipe.execute()
    return bool(first and not is_held and first[0][1] <= seconds + micros / 1e6)


def unfed(client: Any, now: float) -> tuple[int, float]:
    """How many batches are to be fed, and for how many seconds by Redis's clock nobody has done that."""
    with client.pipeline(transaction=False) as pipe:
        pipe.zcount(OPEN, "-inf", now)
        pipe.zrange(OPEN, 0, 0, withscores=True)
        pipe.exists(LEASE)
        pipe.get(FED_AT)
        count, first, is_held, fed_at = pipe.execute()
    if is_held or not count:
        return int(count), 0.0
    return int(count), max(0.0, now - max(float(fed_at or 0), first[0][1]))


def holder(client: Any) -> str:
    """Who feeds, as host/pid; empty where nobody does."""
    found = client.hget(LEASE, "holder")
    return found.decode("utf-8", "replace") if found else ""
