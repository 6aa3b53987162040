"""At most so many admissions in any window of time, for all processes of a deployment: ``10/minute``, ``100/hour``.

A window, not a bucket: what a service allows "in a minute" is never exceeded, in the first minute neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import lua
from graft.tasks.shared.primitive import SharedPrimitive

UNITS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
SHORT: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
RATE: Final = re.compile(r"\s*(-?[\d.]+)\s*/\s*([a-z]+)\s*", re.IGNORECASE)
MOST: Final = 10_000  # Redis keeps the time of each admission in the window.
LONGEST: Final = (
    60.0  # Seconds after which who waits asks again at the latest, so that its place is known to be wanted.
)
PATIENCE: Final = 90.0  # Seconds after that, for which a place is kept.


@dataclass(frozen=True)
class Rate:
    """At most *count* in any *seconds*."""

    count: int
    seconds: float

    @classmethod
    def of(cls, rate: str | int) -> Rate:
        """The rate that *rate* names: ``"10/minute"``, or a whole number for each second.

        Raises:
            ValueError, TypeError: it is none; the message names the parameter ``rate``.
        """
        if isinstance(rate, int) and not isinstance(rate, bool):
            return cls._checked(repr(rate), str(rate), "second")
        if not isinstance(rate, str):
            raise TypeError(f'rate={rate!r} must be a text such as "10/minute", or a whole number for each second')
        found = RATE.fullmatch(rate)
        unit = found.group(2).lower() if found else ""
        unit = SHORT.get(unit, unit.removesuffix("s") if unit not in UNITS else unit)
        if found is None or unit not in UNITS:
            raise ValueError(f'rate={rate!r} is no rate; write "10/minute": a number, and second, minute, hour or day')
        return cls._checked(repr(rate), found.group(1), unit)

    @classmethod
    def _checked(cls, shown: str, count: str, unit: str) -> Rate:
        if not re.fullmatch(r"-?\d+", count):
            raise ValueError(
                f'rate={shown}: {count} is no whole number; name a longer time: "30/minute" for 0.5/second'
            )
        if int(count) < 1:
            raise ValueError(f"rate={shown} must allow at least 1; to stop a queue's work, pause the queue")
        if int(count) > MOST:
            raise ValueError(f"rate={shown} counts more than {MOST} in a window; name it for a shorter time")
        return cls(int(count), UNITS[unit])

    def __str__(self) -> str:
        name = next((name for name, seconds in UNITS.items() if seconds == self.seconds), f"{self.seconds:g} s")
        return f"{self.count}/{name}"


@dataclass(frozen=True)
class SharedRate(SharedPrimitive):
    """One window for all processes that use *name*.

    Another rate than that of a process that used the name within the last minute is a DifferentLimitsError. Redis
    losing its memory begins a new window.
    """

    rate: Rate
    kind: str = field(default="rate", kw_only=True)

    script = lua.load(__file__, "waiters", "rate_window")
    parts = ("admitted", "waiters", "seen", "state")

    def take(self, ticket: str) -> float:
        """0.0 if *ticket* may go now, which counts; else the seconds until it may be its turn, at most a minute."""
        wait, theirs = self._run("take", ticket, LONGEST, PATIENCE)
        if theirs:
            raise self._refuse_difference(theirs, self.rate)
        return min(float(wait), LONGEST)

    def withdraw(self, ticket: str) -> None:
        """*ticket* no longer waits."""
        self._run("withdraw", ticket)

    def _run(self, operation: str, *arguments: Any, **options: Any) -> Any:
        rate = self.rate
        return super()._run(operation, str(rate), rate.count, repr(rate.seconds), *arguments, **options)
