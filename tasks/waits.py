"""A retry policy with exact waits, for tasks whose contract names the seconds."""

from __future__ import annotations

from dataclasses import dataclass

from graft.tasks.errors import PermanentError
from graft.tasks.policy import RetryPolicy


@dataclass(frozen=True)
class ExactWaits(RetryPolicy):
    """Waits ``base * factor**(run - 1)`` seconds, not a random part of it; ``ceiling`` has no part in this."""

    base: float = 60.0
    factor: float = 1.0

    def wait_after(self, run: int, error: BaseException) -> float | None:
        if run >= self.runs or isinstance(error, PermanentError) or not isinstance(error, Exception):
            return None
        return float(self.base * self.factor ** (run - 1))
