"""A semaphore that all processes of a deployment share: leased permits, given in the order of asking.

The permit of a holder that was killed expires, and so does the turn of a waiter that was killed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import lua
from graft.config.validation import at_least_one, seconds
from graft.tasks.shared.primitive import KEPT, SharedPrimitive

LEASE: Final = 30.0

_used: dict[str, float] = {}


@dataclass(frozen=True)
class Admission:
    """``slot`` is the permit's number, from 1 to the limit, or 0; ``ahead`` then counts the permits that others get
    first, and ``wait`` has the seconds until it may be the ticket's turn.
    """

    slot: int
    ahead: int
    wait: float = 0.0


@dataclass(frozen=True)
class SharedSemaphore(SharedPrimitive):
    """At most *limit* permits of *name* are out at once.

    A permit not renewed for *lease* seconds is taken back. A limit that differs from another process's is a
    DifferentLimitsError for as long as that one uses the name, and a minute longer.
    """

    limit: int
    lease: float = LEASE
    kind: str = field(default="semaphore", kw_only=True)

    script = lua.load(__file__, "waiters", "semaphore")
    parts = ("held", "waiters", "seen", "slots", "state")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("limit", self.limit)
        seconds("lease", self.lease)

    def acquire(self, ticket: str, patience: float) -> Admission:
        """A permit for *ticket* if its turn has come; else it waits, until unheard of for *patience* seconds.

        A ticket that holds a permit is given the same one again. With a *patience* of 0 the ticket waits in a queue,
        and cannot ask before its message is back, after ``wait``: whenever it asks and a permit is free, it gets it.
        """
        used_here = time.monotonic() - _used.get(self.prefix, -KEPT) < KEPT / 2
        slot, ahead, *wait = self._run("acquire", ticket, patience, int(used_here))
        if slot < 0:
            raise self._refuse_difference(b"limit " + ahead, f"limit {self.limit}")
        _used[self.prefix] = time.monotonic()
        return Admission(slot, ahead, *map(float, wait))

    def renew(self, ticket: str) -> bool:
        """Whether the permit is still this ticket's, for another *lease* seconds."""
        return bool(self._run("renew", ticket))

    def release(self, ticket: str) -> None:
        """Give the permit back, or stop waiting for one."""
        self._run("release", ticket)

    def withdraw(self, ticket: str) -> None:
        """Stop waiting; a permit that the ticket holds by now stays its own."""
        self._run("withdraw", ticket)

    def available(self) -> int:
        """Permits that nobody holds."""
        return max(0, int(self._run("available", "")))

    def _run(self, operation: str, *arguments: Any, **options: Any) -> Any:
        return super()._run(operation, self.limit, self.lease, *arguments, **options)
