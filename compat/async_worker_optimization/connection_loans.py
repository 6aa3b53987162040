"""Loans: connections in somebody's hands, and what is reported of those held too long."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Loan:
    """A lent connection. ``since`` is on the monotonic clock."""

    connection: Any
    location: str
    since: float

    def as_leak(self, now: float, max_hold_seconds: float) -> dict[str, Any] | None:
        """The report on a loan held longer than *max_hold_seconds*, else None; "high" beyond twice as long."""
        held = now - self.since
        if held <= max_hold_seconds:
            return None
        return {
            "location": self.location,
            "type": "long_held_connection",
            "held_seconds": held,
            "severity": "high" if held > 2 * max_hold_seconds else "medium",
            "connection": self.connection,
        }


class Released:
    """The answer of a ``release()``, for callers who await it."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


def source_line(frame: FrameType) -> str:
    """File, line and function of *frame*."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
