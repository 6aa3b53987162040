"""Renews leases while their holder lives: one thread per process, whatever its event loops are doing.

A killed process stops renewing, and what it held expires; that is the whole point.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger(__name__)

RETRY: Final = 0.5  # Seconds until a renewal that failed is tried again.


@dataclass(slots=True)
class _Lease:
    renew: Callable[[], bool]
    every: float
    due: float
    is_failing: bool = False


_changed = threading.Condition()
_leases: dict[str, _Lease] = {}
_thread: threading.Thread | None = None
_renewing = ""


def keep(ticket: str, renew: Callable[[], bool], every: float) -> None:
    """Call *renew* each *every* seconds until it returns False or :func:`drop` is called; its errors are logged."""
    global _thread
    with _changed:
        _leases[ticket] = _Lease(renew, every, time.monotonic() + every)
        if _thread is None:
            _thread = threading.Thread(target=_work, name="graft-keeper", daemon=True)
            _thread.start()
        _changed.notify_all()


def drop(ticket: str) -> bool:
    """Stop renewing; False when it was given up before, because the lease was lost.

    Blocks while this lease is being renewed: a renewal that came after the giving back would take it again.
    """
    with _changed:
        lease = _leases.pop(ticket, None)
        _changed.wait_for(lambda: _renewing != ticket)
        return lease is not None


def _work() -> None:
    global _thread, _renewing
    while True:
        with _changed:
            _renewing = ""
            _changed.notify_all()
            if not _leases:
                _thread = None
                return
            ticket, lease = min(_leases.items(), key=lambda entry: entry[1].due)
            wait = lease.due - time.monotonic()
            if wait > 0:
                _changed.wait(wait)
                continue
            _renewing = ticket
        _renew(ticket, lease)


def _renew(ticket: str, lease: _Lease) -> None:
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
        with _changed:
            if _leases.get(ticket) is lease:
                del _leases[ticket]


def _forget() -> None:
    """What the parent holds is not the child's."""
    global _changed, _thread, _renewing
    _changed = threading.Condition()
    _thread, _renewing = None, ""
    _leases.clear()


os.register_at_fork(after_in_child=_forget)
