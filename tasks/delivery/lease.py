"""Whether this worker still holds the message that it runs: after a freeze or an outage another may have it.

A worker that was stopped for longer than the visibility timeout has lost its leases. What it finishes then must not be
stored, answered, retried or buried: that is for the run that has the message now. While leases are renewed in time,
no run asks Redis: the main process notes each renewal in memory that it shares with the processes it forks.
"""

from __future__ import annotations

import logging
import mmap
import struct
from typing import Any, Final

from celery.exceptions import Ignore

from graft.config import keys, redis_clock
from graft.config.deployment import existing, part
from graft.config.redis_client import broker

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

    @property
    def is_certain(self) -> bool:
        (until,) = struct.unpack("d", self._until[:])
        return bool(now() < until)


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
    """
    tag = (getattr(request, "properties", None) or {}).get("delivery_tag")
    if is_certain() or not tag:
        return
    with broker() as client:
        if client.hexists(keys.UNACKED, tag):
            return
    logger.warning(
        "the lease of %s ran out while it ran here, and another worker has the task: what came of this run is dropped",
        request.id,
    )
    raise LeaseLost("another worker has this task")
