"""A token bucket computed from the clock: who asks is told when, and waits until then by himself.

The rule is a value (:class:`Bucket`); the shared limiter applies the same in Lua, with Redis's clock. The bucket is
kept as one number, ``full_at``: when it would be full again if nobody asked any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from graft.config import lua
from graft.tasks.shared.primitive import SharedPrimitive


@dataclass(frozen=True)
class Bucket:
    """Holds at most *per_second* tokens, starts full, and gains one each ``1 / per_second`` seconds."""

    per_second: float

    def __post_init__(self) -> None:
        if isinstance(self.per_second, bool) or not isinstance(self.per_second, int | float):
            raise TypeError(f"per_second={self.per_second!r} must be a number")
        if not 1 <= self.per_second < math.inf:
            raise ValueError(f"per_second={self.per_second!r} must be at least 1, and finite")

    @property
    def period(self) -> float:
        return 1 / self.per_second

    @property
    def slack(self) -> float:
        """How far ``full_at`` may lie ahead while a token is there."""
        return (math.floor(self.per_second) - 1) * self.period

    def book(self, full_at: float, now: float) -> tuple[float, float]:
        """The next token: the new ``full_at``, and when it may be used."""
        return max(full_at, now) + self.period, max(now, full_at - self.slack)


@dataclass(frozen=True)
class SharedRateLimiter(SharedPrimitive):
    """One token bucket for all processes that use *name*.

    Another rate than that of a process that used the name within the last minute is a DifferentLimitsError. Redis
    losing its memory fills the bucket.
    """

    per_second: float
    kind: str = field(default="rate-limiter", kw_only=True)

    script = lua.load(__file__, "rate_limiter")
    parts = ("state", "booked")

    def __post_init__(self) -> None:
        super().__post_init__()
        Bucket(self.per_second)

    def book(self, ticket: str) -> float:
        """Seconds until *ticket* may go; asked again, what is left of them. First come, first served."""
        wait, theirs = self._run("book", ticket)
        if theirs:
            rate = f"{1 / float(theirs):g} per second".encode()
            raise self._refuse_difference(rate, f"{self.per_second:g} per second")
        return float(wait)

    def used(self, ticket: str) -> None:
        """The token has been used: asked again, *ticket* books another."""
        self._run("used", ticket)

    def cancel(self, ticket: str) -> None:
        """*ticket* will not use its token."""
        self._run("cancel", ticket)

    def _run(self, operation: str, *arguments: Any, **options: Any) -> Any:
        bucket = Bucket(self.per_second)
        return super()._run(operation, repr(bucket.period), repr(bucket.slack), *arguments, **options)
