"""How often a failed item runs again, and how long it waits in between."""

from __future__ import annotations

import random
from dataclasses import dataclass

from graft.tasks.errors import PermanentError


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failed item runs again, and how long it waits in between.

    The longest wait is ``base * 2**(run - 1)`` seconds, at most ``ceiling``. The wait itself is drawn uniformly from 0
    to that, so that items that failed together do not come back together. A PermanentError is never retried.

    Attributes:
        runs: runs in all, at least 1; the first one counts.
        base: seconds, the longest wait after the first run.
        ceiling: seconds, the longest wait after any run.
    """

    runs: int = 5
    base: float = 1.0
    ceiling: float = 60.0

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"runs={self.runs} must be at least 1: the first run counts")
        if self.base < 0 or self.ceiling < 0:
            raise ValueError(f"base={self.base:g} s and ceiling={self.ceiling:g} s must not be negative")

    def wait_after(self, run: int, error: BaseException) -> float | None:
        """Return the seconds until the next run, or None if there is none. *run* is the run that failed, from 1."""
        if run >= self.runs or isinstance(error, PermanentError) or not isinstance(error, Exception):
            return None
        return random.uniform(0, min(self.ceiling, self.base * 2 ** min(run - 1, 63)))


@dataclass(frozen=True)
class ExactWaits(RetryPolicy):
    """A policy whose waits are exact: ``base * factor**(run - 1)`` seconds. A PermanentError is never retried.

    Attributes:
        runs: runs in all, at least 1; the first one counts.
        base: seconds, the wait after the first run.
        factor: by what the wait grows from run to run; 1 keeps it the same.
        ceiling: not used.
    """

    base: float = 60.0
    factor: float = 1.0

    def wait_after(self, run: int, error: BaseException) -> float | None:
        """Return the seconds until the next run, or None if there is none. *run* is the run that failed, from 1."""
        if run >= self.runs or isinstance(error, PermanentError) or not isinstance(error, Exception):
            return None
        return float(self.base * self.factor ** (run - 1))


ONCE = RetryPolicy(runs=1)


def as_policy(retry: RetryPolicy | int | None) -> RetryPolicy:
    """What callers may write for a policy: nothing (one run), a number of retries, or the policy itself."""
    if retry is None:
        return ONCE
    if isinstance(retry, RetryPolicy):
        return retry
    if isinstance(retry, bool) or not isinstance(retry, int):
        raise TypeError(f"retry must be a RetryPolicy or a number of retries, not {retry!r}")
    if retry < 0:
        raise ValueError(f"retry={retry} must not be negative")
    return RetryPolicy(runs=retry + 1)
