"""Retry: pauses that double, three kinds of jitter, and which errors are retried."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from graft.compat.local import awaited
from graft.tasks.callables.importable import name_of
from graft.tasks.policy import FailedRun, RetryPolicy

CEILING: Final = 30.0
SMART_DELAY: Final = 0.1
RETRYABLE: Final = ("timeout", "connection reset", "503", "429", "temporary")
NOT_RETRYABLE: Final = ("404", "401", "400", "invalid")


class JitterStrategy(Enum):
    """How a pause is drawn for base delay d and initial delay i."""

    FULL = "full"
    """Between 0 and d."""
    EQUAL = "equal"
    """Between d/2 and d."""
    DECORRELATED = "decorrelated"
    """Between i and 3d. Unlike the usual algorithm of that name it does not depend on the pause before."""

    def pause(self, delay: float, initial: float, ceiling: float = CEILING) -> float:
        """Seconds, in whole milliseconds, both ends of the range included; never above *ceiling* where d is not.

        Difference: the chapter lets DECORRELATED draw up to three times the ceiling.
        """
        if self is JitterStrategy.FULL:
            return _draw(0, delay)
        if self is JitterStrategy.EQUAL:
            return _draw(delay / 2, delay)
        return min(_draw(initial, 3 * delay), max(ceiling, initial))


def _draw(low: float, high: float) -> float:
    first, last = round(low * 1000), round(high * 1000)
    return random.randint(first, max(first, last)) / 1000


def delays(initial: float, multiplier: float = 2.0, ceiling: float = CEILING) -> Iterator[float]:
    """*initial*, then grown by *multiplier* up to *ceiling*, for ever; an initial one above it is used as it is."""
    yield initial
    delay = initial
    while True:
        delay = min(delay * multiplier, ceiling)
        yield delay


@dataclass(frozen=True)
class RetryConfig:
    """Up to *max_retries* calls after the first. Delays are seconds.

    Also a policy for work on the workers: ``on_workers(func, retry=config.policy())`` waits the same pauses, as the
    countdown of the task that goes back to its queue under its own id.
    """

    max_retries: int = 3
    initial_delay: float = 0.5
    max_delay: float = CEILING
    multiplier: float = 2.0
    jitter_strategy: JitterStrategy = JitterStrategy.FULL

    def __post_init__(self) -> None:
        _check(self.max_retries, self.initial_delay)
        if self.max_delay < 0 or self.multiplier < 0:
            raise ValueError(f"max_delay={self.max_delay} and multiplier={self.multiplier} must not be negative")

    def base_delay(self, failures: int) -> float:
        """The base delay after so many failures, from 1."""
        return next(itertools.islice(delays(self.initial_delay, self.multiplier, self.max_delay), failures - 1, None))

    def pause(self, failures: int) -> float:
        """A pause after so many failures."""
        return self.jitter_strategy.pause(self.base_delay(failures), self.initial_delay, self.max_delay)

    def policy(self) -> JitterPolicy:
        return JitterPolicy(runs=self.max_retries + 1, on=Exception, config=self)


@dataclass(frozen=True)
class JitterPolicy(RetryPolicy):
    """A RetryPolicy with the pauses of a RetryConfig."""

    config: RetryConfig = field(default_factory=RetryConfig)

    def wait_after(self, run: int, error: BaseException) -> float | None:
        return None if super().wait_after(run, error) is None else self.config.pause(run)


def is_retryable(error: object) -> bool:
    """By the error's text, case-sensitive, the first list wins.

    Yes for "timeout", "connection reset", "503", "429", "temporary"; no for "404", "401", "400", "invalid"; else yes.
    """
    text = str(error)
    return any(part in text for part in RETRYABLE) or not any(part in text for part in NOT_RETRYABLE)


OnRetry = Callable[[FailedRun], Any] | None


async def retry_with_backoff(
    operation: Callable[[], Any], max_retries: int, initial_delay: float, *, on_retry: OnRetry = None
) -> Any:
    """The value of ``operation()``, async or plain, called up to *max_retries* + 1 times.

    Any error is retried, after pauses of *initial_delay*, then doubled up to 30 s. The last error is raised. Each retry
    is logged, and *on_retry* is called with it: ``on_retry=print`` shows the line that the old chapter prints.
    """
    _check(max_retries, initial_delay)
    return await _retry(operation, max_retries, delays(initial_delay), lambda error: True, on_retry)


async def retry_with_jitter(
    operation: Callable[[], Any], config: RetryConfig | None = None, *, on_retry: OnRetry = None
) -> Any:
    """Like :func:`retry_with_backoff`, with each pause drawn as *config* says; the base delay grows regardless."""
    config = config or RetryConfig()
    pauses = (config.pause(failures) for failures in itertools.count(1))
    return await _retry(operation, config.max_retries, pauses, lambda error: True, on_retry)


async def smart_retry(
    operation: Callable[[], Any],
    max_retries: int,
    *,
    is_retryable: Callable[[Exception], bool] = is_retryable,
    on_retry: OnRetry = None,
) -> Any:
    """Like :func:`retry_with_backoff` from 0.1 s on; an error that *is_retryable* refuses is raised at once."""
    _check(max_retries, SMART_DELAY)
    return await _retry(operation, max_retries, delays(SMART_DELAY), is_retryable, on_retry)


async def _retry(
    operation: Callable[[], Any],
    max_retries: int,
    pauses: Iterator[float],
    may_retry: Callable[[Exception], bool],
    on_retry: OnRetry,
) -> Any:
    policy = RetryPolicy(max_retries + 1, on=Exception, on_retry=on_retry)
    for run in range(1, policy.runs + 1):
        try:
            return await awaited(operation())
        except Exception as error:
            if run == policy.runs or not may_retry(error):
                raise
            pause = next(pauses)
            policy.note(FailedRun(name_of(operation), run, policy.runs, error, pause))
        await asyncio.sleep(pause)
    raise AssertionError  # The last round has returned or raised.


def _check(max_retries: int, initial_delay: float) -> None:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int):
        raise TypeError(f"max_retries={max_retries!r} must be a whole number")
    if max_retries < 0 or initial_delay < 0:
        raise ValueError(f"max_retries={max_retries} and initial_delay={initial_delay} must not be negative")
