"""A circuit breaker as a value, and one that all processes of a deployment share.

The rules stand in :class:`BreakerRules`; circuit_breaker.lua is their translation, with Redis's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, cast

from graft.config import lua
from graft.config.validation import at_least_one
from graft.tasks.shared.primitive import SharedPrimitive

CircuitState = Literal["closed", "open", "half_open"]
SOONEST: Final = 0.01  # Seconds until a refused call may be tried, at least.


@dataclass(frozen=True)
class Circuit:
    """What a breaker knows. ``trials`` are calls let through half-open and not answered yet."""

    state: CircuitState = "closed"
    failures: int = 0
    successes: int = 0
    failed_at: float = 0.0
    trials: int = 0
    tried_at: float = 0.0


@dataclass(frozen=True)
class BreakerRules:
    """Opens after *failure_threshold* failures in a row; tries again *timeout* seconds after the last of them, and
    closes after *success_threshold* successes.

    *half_open_limit* bounds the calls that run at once while half-open; None lets all through. A trial that is not
    answered within *timeout* is not waited for.
    """

    failure_threshold: int = 5
    success_threshold: int = 3
    timeout: float = 30.0
    half_open_limit: int | None = None

    def __post_init__(self) -> None:
        at_least_one("failure_threshold", self.failure_threshold)
        at_least_one("success_threshold", self.success_threshold)
        if self.half_open_limit is not None:
            at_least_one("half_open_limit", self.half_open_limit)
        if not 0 <= self.timeout < math.inf:
            raise ValueError(f"timeout={self.timeout!r} must be 0 or more seconds")

    def __str__(self) -> str:
        limit = "any number" if self.half_open_limit is None else self.half_open_limit
        return (
            f"failure_threshold={self.failure_threshold}, success_threshold={self.success_threshold}, "
            f"timeout={self.timeout:g} s and {limit} at once half-open"
        )

    def admit(self, circuit: Circuit, now: float) -> tuple[Circuit, bool]:
        """Whether a call may run now."""
        if circuit.state == "closed":
            return circuit, True
        if circuit.state == "open":
            if now - circuit.failed_at < self.timeout:
                return circuit, False
            circuit = replace(circuit, state="half_open", successes=0, trials=0)
        trials = 0 if now - circuit.tried_at >= self.timeout else circuit.trials
        if self.half_open_limit is not None and trials >= self.half_open_limit:
            return circuit, False
        return replace(circuit, trials=trials + 1, tried_at=now), True

    def succeeded(self, circuit: Circuit) -> Circuit:
        """After a call that returned; one that was begun before the circuit opened changes nothing."""
        if circuit.state == "closed":
            return replace(circuit, failures=0)
        if circuit.state == "open":
            return circuit
        successes = circuit.successes + 1
        if successes >= self.success_threshold:
            return replace(circuit, state="closed", failures=0, successes=0, trials=0)
        return replace(circuit, successes=successes, trials=max(0, circuit.trials - 1))

    def failed(self, circuit: Circuit, now: float) -> Circuit:
        """After a call that raised."""
        failures = circuit.failures + 1
        opens = circuit.state != "closed" or failures >= self.failure_threshold
        return replace(
            circuit, state="open" if opens else "closed", failures=failures, failed_at=now, successes=0, trials=0
        )

    def abandoned(self, circuit: Circuit) -> Circuit:
        """After a call that was cancelled: neither a success nor a failure."""
        return replace(circuit, trials=max(0, circuit.trials - 1))


@dataclass(frozen=True)
class SharedBreaker(SharedPrimitive):
    """One circuit for all processes that use *name*.

    Other rules than those of a process that used the name within the last minute are a DifferentLimitsError.
    """

    rules: BreakerRules
    kind: str = field(default="circuit-breaker", kw_only=True)

    script = lua.load(__file__, "circuit_breaker")
    parts = ("state",)

    def admit(self) -> bool:
        """Whether a call may run now.

        Raises:
            DifferentLimitsError: another process uses the name with other rules.
        """
        return self.ask()[0] <= 0

    def ask(self) -> tuple[float, CircuitState | None]:
        """Seconds until a call may be tried, 0.0 if one may run now; and the state that this has changed to, if any.

        Raises:
            DifferentLimitsError: another process uses the name with other rules.
        """
        limit = self.rules.half_open_limit
        admitted, text, *change = self._run("admit", -1 if limit is None else limit, str(self.rules))
        if admitted < 0:
            raise self._refuse_difference(text, self.rules)
        return 0.0 if admitted else max(float(text), SOONEST), _change(*change)

    def record(self, what: Literal["succeeded", "failed", "abandoned"]) -> CircuitState | None:
        """Note how a call ended; the state that this has changed to, if any."""
        return _change(self._run(what, self.rules.failure_threshold, self.rules.success_threshold))

    def circuit(self) -> Circuit:
        """What Redis knows now."""
        got = self._run("read")
        if got[0] is None:
            return Circuit()
        state, failures, successes, failed_at, trials, tried_at = (value.decode() for value in got)
        return Circuit(state, int(failures), int(successes), float(failed_at), int(trials), float(tried_at))

    def _run(self, operation: str, *arguments: Any, **options: Any) -> Any:
        return super()._run(operation, repr(self.rules.timeout), *arguments, **options)


def _change(state: bytes = b"") -> CircuitState | None:
    return cast(CircuitState, state.decode()) if state else None
