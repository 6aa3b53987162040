"""Stop calling what keeps failing, and find out carefully when it works again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from graft.compat.async_patterns import polling
from graft.compat.local import awaited
from graft.compat.placement import shared_name
from graft.tasks import blocking_threads
from graft.tasks.errors import TaskQueueError
from graft.tasks.shared.circuit_breaker import BreakerRules, Circuit, SharedBreaker


class CircuitState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitError(TaskQueueError):
    """Base of a breaker's own errors; an operation's error is passed on as it is."""


class CircuitOpenError(CircuitError):
    """The call was refused; the operation has not run."""


@dataclass(frozen=True)
class CircuitBreakerConfig:
    """*timeout* is seconds."""

    failure_threshold: int = 5
    success_threshold: int = 3
    timeout: float = 30.0


class CircuitBreaker:
    """Opens after *failure_threshold* failures in a row and refuses calls for *timeout* seconds after the last one;
    then lets calls through, closes after *success_threshold* successes, and opens again at the first failure.

    Args:
        failure_threshold: at least 1; or a CircuitBreakerConfig with these three fields.
        success_threshold: at least 1.
        timeout: seconds.
        name: one circuit for all processes that use this name, on Redis's clock. Ignored in local mode.
        half_open_limit: calls let through at once while half-open. Default: unlimited.

    Source: the chapter's ``CircuitBreaker``. Differences: an error of the operation is not wrapped; changes of state
    cannot race; a call that was cancelled counts as neither.
    """

    def __init__(
        self,
        failure_threshold: int | CircuitBreakerConfig = 5,
        success_threshold: int = 3,
        timeout: float = 30.0,
        *,
        name: str | None = None,
        half_open_limit: int | None = None,
    ) -> None:
        if isinstance(failure_threshold, CircuitBreakerConfig):
            config = failure_threshold
            failure_threshold, success_threshold = config.failure_threshold, config.success_threshold
            timeout = config.timeout
        self.name = name
        self._rules = BreakerRules(failure_threshold, success_threshold, timeout, half_open_limit)
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._shared = SharedBreaker(shared, self._rules) if (shared := shared_name(name)) else None

    @property
    def state(self) -> CircuitState:
        """The state after the last call: only a call makes an open circuit half-open. With a name, blocks for a round
        trip.
        """
        return CircuitState((self._circuit if self._shared is None else self._shared.circuit()).state)

    async def call(self, operation: Callable[[], Any]) -> Any:
        """The value of ``operation()``, async or plain.

        Raises:
            CircuitOpenError: refused, because the circuit is open, or half-open with *half_open_limit* calls running.
            DifferentLimitsError: another process uses the name with other thresholds.
            Exception: the operation's own.
        """
        if not await self._admit():
            raise CircuitOpenError(
                f"the circuit{f' {self.name!r}' if self.name else ''} is open: refused without a call, until "
                f"{self._rules.timeout:g} s after the last failure"
            )
        try:
            value = await awaited(operation())
        except Exception:
            await self._record("failed")
            raise
        except BaseException:
            if self._shared is not None:
                polling.soon(self._shared.record, "abandoned")
            else:
                await self._record("abandoned")
            raise
        await self._record("succeeded")
        return value

    async def _admit(self) -> bool:
        if self._shared is not None:
            return await blocking_threads.ask(self._shared.admit)
        with self._lock:
            self._circuit, runs = self._rules.admit(self._circuit, time.monotonic())
        return runs

    async def _record(self, what: Literal["succeeded", "failed", "abandoned"]) -> None:
        if self._shared is not None:
            await polling.write(self._shared.record, what)  # The caller gets the operation's own outcome.
            return
        with self._lock:
            if what == "succeeded":
                self._circuit = self._rules.succeeded(self._circuit)
            elif what == "failed":
                self._circuit = self._rules.failed(self._circuit, time.monotonic())
            else:
                self._circuit = self._rules.abandoned(self._circuit)
