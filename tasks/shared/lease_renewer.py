"""Renews leases while their holder lives: one thread per process, whatever its event loops are doing.

A killed process stops renewing, and what it held expires; that is the whole point.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from graft.config.deployment import part

logger = logging.getLogger(__name__)

RETRY: Final = 0.5  # Seconds until a renewal that failed is tried again.


@dataclass(slots=True)
class _Lease:
    renew: Callable[[], bool]
    every: float
    due: float
    is_failing: bool = False


class LeaseRenewer:
    """The thread that renews, and what it renews. A forked child holds none of its parent's leases."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._leases: dict[str, _Lease] = {}
        self._thread: threading.Thread | None = None
        self._renewing = ""

    def keep(self, ticket: str, renew: Callable[[], bool], every: float) -> None:
        """Call *renew* each *every* seconds until it returns False or :meth:`drop` is called; its errors are logged."""
        with self._changed:
            self._leases[ticket] = _Lease(renew, every, time.monotonic() + every)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="graft-lease-renewer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drop(self, ticket: str) -> bool:
        """Stop renewing; False when it was given up before, because the lease was lost.

        Blocks while this lease is being renewed: a renewal that came after the giving back would take it again.
        """
        with self._changed:
            lease = self._leases.pop(ticket, None)
            self._changed.wait_for(lambda: self._renewing != ticket)
            return lease is not None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._renewing = ""
                self._changed.notify_all()
                if not self._leases:
                    self._thread = None
                    return
                ticket, lease = min(self._leases.items(), key=lambda entry: entry[1].due)
                wait = lease.due - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                self._renewing = ticket
            self._renew(ticket, lease)

    def _renew(self, ticket: str, lease: _Lease) -> None:
        try:
            is_ours = lease.renew()
        except Exception as error:
            if not lease.is_failing:
                logger.warning("the lease %s cannot be renewed: %s", ticket, error)
            lease.is_failing = True
            lease.due = time.monotonic() + min(RETRY, lease.every)
            return
        lease.is_failing = False
        lease.due = time.monotonic() + lease.every
        if not is_ours:
            logger.warning("the lease %s was not renewed in time, and somebody else has it now", ticket)
            with self._changed:
                if self._leases.get(ticket) is lease:
                    del self._leases[ticket]


def lease_renewer() -> LeaseRenewer:
    """The one of this process."""
    return part(LeaseRenewer)
