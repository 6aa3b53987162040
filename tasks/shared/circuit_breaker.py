"""A circuit breaker as a value, and one that all processes of a deployment share.

The rules stand in :class:`Rules`; the Lua below is their translation, with Redis's clock, so that each change of state
is one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from graft.tasks.shared import lua
from graft.tasks.shared.lua import CLOCK, IN_USE, KEPT

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True)
class Circuit:
    """What a breaker knows. ``trials`` are calls let through half-open and not answered yet."""

    state: State = "closed"
    failures: int = 0
    successes: int = 0
    failed_at: float = 0.0
    trials: int = 0
    tried_at: float = 0.0


@dataclass(frozen=True)
class Rules:
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
        lua.at_least_one("failure_threshold", self.failure_threshold)
        lua.at_least_one("success_threshold", self.success_threshold)
        if self.half_open_limit is not None:
            lua.at_least_one("half_open_limit", self.half_open_limit)
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


_READ: Final = (
    CLOCK
    + """
local got = redis.call('HMGET', KEYS[1], 'state', 'failures', 'successes', 'failed_at', 'trials', 'tried_at')
local state = got[1] or 'closed'
local failures, successes, failed_at = tonumber(got[2] or 0), tonumber(got[3] or 0), tonumber(got[4] or 0)
local trials, tried_at = tonumber(got[5] or 0), tonumber(got[6] or 0)
"""
)

_WRITE: Final = f"""
redis.call('HSET', KEYS[1], 'state', state, 'failures', failures, 'successes', successes,
  'failed_at', string.format('%.6f', failed_at), 'trials', trials, 'tried_at', string.format('%.6f', tried_at))
redis.call('EXPIRE', KEYS[1], {KEPT} + math.ceil(tonumber(ARGV[1])))
"""

# ARGV: timeout, half_open_limit or -1, the rules in words.
_ADMIT: Final = (
    _READ
    + f"""
local timeout, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local use = redis.call('HMGET', KEYS[1], 'rules', 'used')
if use[1] and use[1] ~= ARGV[3] and now - tonumber(use[2]) < {IN_USE} then return {{-1, use[1]}} end
redis.call('HSET', KEYS[1], 'rules', ARGV[3], 'used', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], {KEPT} + math.ceil(timeout))
"""
    + """
if state == 'closed' then return {1, state} end
if state == 'open' then
  if now - failed_at < timeout then
    return {0, state, string.format('%.6f', timeout - (now - failed_at))}
  end
  state, successes, trials = 'half_open', 0, 0
end
if now - tried_at >= timeout then trials = 0 end
local runs = limit < 0 or trials < limit
if runs then trials, tried_at = trials + 1, now end
"""
    + _WRITE
    + "return {runs and 1 or 0, state, '0'}"
)

# ARGV: timeout, what came of the call, failure_threshold, success_threshold.
_RECORD: Final = (
    _READ
    + """
if ARGV[2] == 'failed' then
  failures = failures + 1
  if state ~= 'closed' or failures >= tonumber(ARGV[3]) then state = 'open' end
  failed_at, successes, trials = now, 0, 0
elseif ARGV[2] == 'abandoned' then
  trials = math.max(0, trials - 1)
elseif state == 'closed' then
  if failures == 0 then return state end
  failures = 0
elseif state == 'half_open' then
  successes = successes + 1
  trials = math.max(0, trials - 1)
  if successes >= tonumber(ARGV[4]) then state, failures, successes, trials = 'closed', 0, 0, 0 end
end
"""
    + _WRITE
    + "return state"
)


@dataclass(frozen=True)
class SharedBreaker:
    """One circuit for all processes that use *name*. Every method blocks for a round trip.

    Other rules than those of a process that used the name within the last minute are a DifferentFiguresError.
    """

    name: str
    rules: Rules

    def __post_init__(self) -> None:
        lua.keys("breaker", self.name)

    @property
    def keys(self) -> list[str]:
        return lua.keys("breaker", self.name, "state")

    def admit(self) -> bool:
        """Whether a call may run now.

        Raises:
            DifferentFiguresError: another process uses the name with other rules.
        """
        limit = self.rules.half_open_limit
        answer = lua.run(_ADMIT, self.keys, repr(self.rules.timeout), -1 if limit is None else limit, str(self.rules))
        if answer[0] < 0:
            raise lua.refuse_difference("circuit breaker", self.name, answer[1], self.rules)
        return bool(answer[0])

    def record(self, what: Literal["succeeded", "failed", "abandoned"]) -> None:
        rules = self.rules
        lua.run(_RECORD, self.keys, repr(rules.timeout), what, rules.failure_threshold, rules.success_threshold)

    def circuit(self) -> Circuit:
        """What Redis knows now."""
        names = ("state", "failures", "successes", "failed_at", "trials", "tried_at")
        got = lua.run("return redis.call('HMGET', KEYS[1], unpack(ARGV))", self.keys, *names)
        if got[0] is None:
            return Circuit()
        state, failures, successes, failed_at, trials, tried_at = (value.decode() for value in got)
        return Circuit(state, int(failures), int(successes), float(failed_at), int(trials), float(tried_at))
