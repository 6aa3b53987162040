"""A task under a shared semaphore and a shared rate limit, which writes down what it saw of both."""

from __future__ import annotations

import time
from typing import Final

from graft.scripts.drill.history import operation
from graft.scripts.drill.ledger import note
from graft.tasks.ids import new_id
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore

PERMITS: Final = 2
LEASE: Final = 5.0
POLL: Final = 0.05  # Seconds between two attempts to take a permit.
PER_SECOND: Final = 8
PERIOD: Final = 1 / PER_SECOND
BURST: Final = PER_SECOND  # That a bucket which was idle lets pass at once.
SEMAPHORE: Final = "semaphore"
RATE: Final = "rate"


def run(label: str, seconds: float) -> str:
    """Take a permit, pass the rate limit, hold the permit for *seconds*, and give it back."""
    note("start", label)
    semaphore, limiter = SharedSemaphore("drill", PERMITS, LEASE), SharedRateLimiter("drill", PER_SECOND)
    ticket = new_id()
    while not _acquired(semaphore, ticket):
        time.sleep(POLL)
    time.sleep(limiter.book(ticket))
    with operation("pass", RATE):
        pass  # Whatever the limit is there for.
    limiter.used(ticket)
    time.sleep(seconds)
    with operation("release", SEMAPHORE, ticket):
        semaphore.release(ticket)
    note("end", label)
    return label


def _acquired(semaphore: SharedSemaphore, ticket: str) -> bool:
    with operation("acquire", SEMAPHORE) as returned:
        is_ours = semaphore.acquire(ticket, LEASE).slot > 0
        returned.value = ticket if is_ours else None
    return is_ours
