"""Whether a failed item or task runs again, and how long it waits in between."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from graft.config.validation import at_least_one, number
from graft.tasks.errors import PermanentError

logger = logging.getLogger(__name__)

Jitter = Literal["none", "full", "equal", "decorrelated"]
JITTERS: Final = ("none", "full", "equal", "decorrelated")
Errors = type[BaseException] | tuple[type[BaseException], ...]

# Names of errors of libraries that do not derive from OSError: redis, httpx, aiohttp, the database drivers.
TRANSIENT_NAMES: Final = frozenset(
    {"ConnectionError", "ClientConnectionError", "TimeoutError", "Timeout", "TransportError", "OperationalError"}
)


def is_transient(error: BaseException) -> bool:
    """Whether another run may well succeed: a connection, a timeout, the operating system.

    Such are OSError with all that derives from it (ConnectionError, TimeoutError), and errors whose class, or one above
    it, has a name by which libraries call the same. Mistakes of a program (TypeError, ValueError, KeyError) are none.
    """
    return isinstance(error, OSError) or any(cls.__name__ in TRANSIENT_NAMES for cls in type(error).__mro__)


@dataclass(frozen=True)
class FailedRun:
    """One run that failed and is followed by another, for the log and for ``on_retry``. ``str()`` is the log's line.

    Attributes:
        name: the function or task.
        run: the run that failed, from 1.
        runs: runs in all that its policy allows.
        error: what it failed with.
        wait: seconds until the next run.
        id: the envelope's or the task's id.
        item: the item's position in its batch; None for a task.
    """

    name: str
    run: int
    runs: int
    error: BaseException
    wait: float
    id: str = ""
    item: int | None = None

    def __str__(self) -> str:
        what = self.name if self.item is None else f"item {self.item} of {self.name}"
        return (
            f"run {self.run} of {self.runs} of {what} failed: {self.error!r:.300}. It runs again in {self.wait:.3g} s"
        )


def _not_negative(name: str, value: float) -> None:
    if number(name, value) < 0:
        raise ValueError(f"{name}={value:g} s must not be negative")


def _classes(name: str, errors: Errors | Iterable[type[BaseException]]) -> tuple[type[BaseException], ...]:
    found: tuple[Any, ...] = (errors,)
    if isinstance(errors, Iterable) and not isinstance(errors, str | type):
        found = tuple(errors)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{name}={each!r} must be a class of errors, or several")
    return found


@dataclass(frozen=True)
class RetryPolicy:
    """Which failures are followed by another run, how many, and after how long.

    The longest wait is ``base * factor**(run - 1)`` seconds, at most ``ceiling``; or that of ``waits``. The wait itself
    is drawn as ``jitter`` says, so that items that failed together do not come back together. A PermanentError is never
    retried.

    Attributes:
        runs: runs in all, at least 1; the first one counts.
        base: seconds, the longest wait after the first run.
        ceiling: seconds, the longest wait after any run.
        factor: by what the longest wait grows from run to run; 1 keeps it the same.
        waits: fixed waits in seconds, one after each run, instead of growing ones; the last one is repeated.
        jitter: how a wait is drawn, where d is the longest one: "full" from 0 to d, "equal" from d/2 to d,
            "decorrelated" from ``base`` to 3d, "none" d itself. Default: "full", or "none" for ``waits``.
        on: the errors that are retried: a class, or several. Default: transient ones, which are connections, timeouts
            and other errors of the operating system (``is_transient``). ``on=Exception`` retries any.
        give_up_on: errors that are not retried, although they are among ``on``.
        max_seconds: no run begins later than that after the first one began. Default: no limit.
        on_retry: called on the worker with a :class:`FailedRun` each time, beside the line in the log. Workers import
            it by name. What it raises is logged.
    """

    runs: int = 5
    base: float = 1.0
    ceiling: float = 60.0
    factor: float = 2.0
    waits: tuple[float, ...] = ()
    jitter: Jitter | None = None
    on: Errors | None = None
    give_up_on: Errors = ()
    max_seconds: float | None = None
    on_retry: Callable[[FailedRun], Any] | None = None

    def __post_init__(self) -> None:
        at_least_one("runs", self.runs)
        object.__setattr__(self, "waits", tuple(self.waits))
        for name in ("base", "ceiling", "factor"):
            _not_negative(name, getattr(self, name))
        for wait in self.waits:
            _not_negative("waits", wait)
        if self.max_seconds is not None:
            _not_negative("max_seconds", self.max_seconds)
        if self.jitter is not None and self.jitter not in JITTERS:
            raise ValueError(f"jitter={self.jitter!r} must be one of {', '.join(JITTERS)}")
        if self.on is not None:
            object.__setattr__(self, "on", _classes("on", self.on))
        object.__setattr__(self, "give_up_on", _classes("give_up_on", self.give_up_on))
        if self.on_retry is not None and not callable(self.on_retry):
            raise TypeError(f"on_retry={self.on_retry!r} is not callable")

    def retries(self, error: BaseException) -> bool:
        """Return whether the policy retries *error* at all."""
        if isinstance(error, PermanentError) or not isinstance(error, Exception) or isinstance(error, self.give_up_on):
            return False
        return is_transient(error) if self.on is None else isinstance(error, self.on)

    def wait_after(self, run: int, error: BaseException) -> float | None:
        """Return the seconds until the next run, or None if there is none. *run* is the run that failed, from 1."""
        if run >= self.runs or not self.retries(error):
            return None
        longest = self._longest(run)
        jitter = self.jitter or ("none" if self.waits else "full")
        if jitter == "none":
            return longest
        if jitter == "decorrelated":
            return min(random.uniform(self.base, max(3 * longest, self.base)), self.ceiling)
        return random.uniform(longest / 2 if jitter == "equal" else 0.0, longest)

    def next_wait(self, run: int, error: BaseException, elapsed: float) -> float | None:
        """Return the same, or None where ``max_seconds`` would have passed; *elapsed* since the first run began."""
        wait = self.wait_after(run, error)
        if wait is None or self.max_seconds is None or elapsed + wait <= self.max_seconds:
            return wait
        return None

    def names(self) -> tuple[Any, ...]:
        """Return the classes and functions of the policy, which workers import by name."""
        on = self.on if isinstance(self.on, tuple) else ()
        hook = () if self.on_retry is None else (self.on_retry,)
        return (*on, *(self.give_up_on if isinstance(self.give_up_on, tuple) else ()), *hook)

    def note(self, failed: FailedRun) -> None:
        """Log *failed*, and call the hook."""
        logger.warning("%s", failed)
        self.call_hook(failed)

    def call_hook(self, failed: FailedRun) -> None:
        """Call ``on_retry``, if there is one."""
        if self.on_retry is None:
            return
        try:
            self.on_retry(failed)
        except Exception:
            logger.exception("on_retry of a RetryPolicy failed")

    def _longest(self, run: int) -> float:
        if self.waits:
            return float(self.waits[min(run, len(self.waits)) - 1])
        try:
            return float(min(self.ceiling, self.base * float(self.factor) ** (run - 1)))
        except OverflowError:
            return float(self.ceiling) if self.base else 0.0


@dataclass(frozen=True)
class ExactWaits(RetryPolicy):
    """A policy whose waits are exact: ``base * factor**(run - 1)`` seconds; ``RetryPolicy(jitter="none")``, unbounded.

    Attributes:
        runs: runs in all, at least 1; the first one counts.
        base: seconds, the wait after the first run.
        factor: by what the wait grows from run to run; 1 keeps it the same.
        ceiling: seconds, the longest wait after any run. Default: none.
    """

    base: float = 60.0
    ceiling: float = math.inf
    factor: float = 1.0
    jitter: Jitter | None = "none"


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
