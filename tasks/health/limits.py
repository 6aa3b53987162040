"""Where well ends, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from graft.config.settings import Settings

FAILING: Final = 5.0  # A value above its limit is degraded, above so many times the limit failing.


@dataclass(frozen=True)
class Limits:
    """Where well ends. Durations are seconds, shares are from 0 to 1."""

    depth: int = 10_000
    age: float = 300.0
    round_trip: float = 60.0
    silence: float = 60.0
    clock: float = 5.0
    lag: float = 0.5
    error_rate: float = 0.05
    memory: float = 0.8
    dead_letters: int = 0
    visibility_timeout: float = 60.0
    hard_time_limit: float = 3600.0

    @classmethod
    def of(cls, config: Settings) -> Self:
        return cls(
            config.health_depth,
            config.health_age,
            config.health_round_trip,
            config.health_silence,
            config.health_clock,
            config.loop_lag,
            config.health_error_rate,
            config.health_memory,
            config.health_dead_letters,
            config.visibility_timeout,
            config.hard_time_limit,
        )
