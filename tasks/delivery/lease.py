"""Whether this worker still holds the message that it runs: after a freeze or an outage another may have it.

A worker that was stopped for longer than the visibility timeout has lost its leases. What it finishes then must not be
stored, answered, retried or buried: that is for the run that has the message now. While leases are renewed in time,
no run asks Redis: the main process notes each renewal in memory that it shares with the processes it forks.

Each delivery that goes back to its queue leaves a key under its tag. The scripts that store a result and bury a letter
write nothing for such a delivery.
"""

from __future__ import annotations

import logging
import mmap
import struct
from typing import Any, Final

import redis
from celery.exceptions import Ignore, Reject

from graft.config import keys, redis_clock
from graft.config.deployment import existing, part, settings
from graft.config.redis_client import patient_broker

logger = logging.getLogger(__name__)

MARGIN: Final = 0.9  # Of the visibility timeout: between asking and concluding a moment passes.


class LeaseLost(Ignore):
    """Another worker has the message of this run."""


class LeaseClock:
    """Until when the leases of this worker hold for certain."""

    def __init__(self) -> None:
        self._until = mmap.mmap(-1, 8)  # Shared with the processes forked later.

    def after_fork(self) -> None:
        """A pool process reads what its parent writes."""

    def renewed(self, at: float, visibility_timeout: float) -> None:
        """Note that all leases were renewed, by a command sent *at* that time of :func:`now`."""
        self._until[:] = struct.pack("d", at + MARGIN * visibility_timeout)

    def doubt(self) -> None:
        """Have every run ask, until all leases are renewed again."""
        self._until[:] = struct.pack("d", 0.0)

    @property
    def holds_until(self) -> float:
        """By the clock of :func:`now`."""
        return float(struct.unpack("d", self._until[:])[0])

    @property
    def is_certain(self) -> bool:
        return now() < self.holds_until


def now() -> float:
    """The time of the clock by which this machine measures leases."""
    return redis_clock.running()


def keep_clock() -> LeaseClock:
    """In a worker, before its pool processes are forked: have a clock from now on."""
    return part(LeaseClock)


def is_certain() -> bool:
    """Whether the leases of this worker hold for certain; nobody need be asked. Also where there are none."""
    clock = existing(LeaseClock)
    return clock is None or clock.is_certain


def refuse_if_lost(request: Any) -> None:
    """Call this before anything is done with what came of a run.

    Raises:
        LeaseLost: another worker has the message of *request*.
        Reject: Redis does not say, or does not know it, and the message goes back: an outage makes a lease uncertain,
            and is nobody's fault.
    """
    tag = (getattr(request, "properties", None) or {}).get("delivery_tag")
    if is_certain() or not tag:
        return
    try:
        is_held, went_back = _look_for(tag)
    except redis.RedisError as outage:
        raise Reject(outage, requeue=True) from outage
    if is_held:
        return
    if not went_back:
        # Perhaps not where this process asks: for a moment after a failover two servers may take themselves for the
        # master. It goes back to where it came from, if that has it.
        raise Reject("Redis knows nothing of this delivery", requeue=True)
    warn_of_loss(request.id)
    raise LeaseLost("another worker has this task")


def _look_for(tag: str) -> tuple[bool, bool]:
    """Whether the delivery is on record as held, and whether it went back to its queue."""
    with patient_broker().pipeline(transaction=False) as pipe:  # Which bears with an outage.
        pipe.hexists(keys.UNACKED, tag)
        pipe.exists(keys.RETURNED + tag)
        is_held, went_back = pipe.execute()
    return bool(is_held), bool(went_back)


def warn_of_loss(task_id: str) -> None:
    """Say in the log that a run's outcome is dropped."""
    logger.warning(
        "the lease of %s ran out while it ran here, and another worker has the task: what came of this run is dropped",
        task_id,
    )


def hold(request: Any, acks_late: bool) -> None:
    """The run of *request* begins here; its message is held until it has ended, where it is acknowledged late."""
    request.graft_delivery = (request.properties or {}).get("delivery_tag") if acks_late else None


def fence_of(request: Any) -> str:
    """The delivery that a write which ends the run of *request* is conditional on, in one script; "" for none.

    A worker's certainty is by its own clock. Redis's may have been set forward, and its leases given to others; so the
    script asks once more, whether the delivery is among those that went back. Not where the broker is another server
    than the one that is written to.
    """
    tag = getattr(request, "graft_delivery", None)
    return str(tag) if tag and settings().backend_url == settings().broker_url else ""
