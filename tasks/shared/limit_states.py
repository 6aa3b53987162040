"""What each limit is doing now, for ``top``, ``health`` and the exporter. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from graft.config import keys
from graft.config.redis_client import server_time

LIMITS: Final = 100  # Limits that are read, those that were used last,
KEYS: Final = 100  # and so many keys of each.
SEMAPHORE: Final = f"{keys.SHARED}semaphore:"
RATE: Final = f"{keys.SHARED}rate:"
BREAKER: Final = f"{keys.SHARED}circuit-breaker:"


@dataclass(frozen=True)
class OpenBreaker:
    """A breaker that lets nothing or only trials through. ``label`` is its limit's name, and its key in brackets.

    ``since`` are the seconds since the last failure, ``asked`` those since an item came for it.
    """

    label: str
    state: str
    failures: int
    since: float
    asked: float


@dataclass(frozen=True)
class LimitState:
    """One limit. ``last`` are seconds since the epoch; ``postponed`` counts items, by kind ("rate", …).

    ``held`` permits are out and ``waiting`` items or envelopes are in line, with all keys that were used last.
    """

    name: str
    rule: str = ""
    last: float = 0.0
    keys: int = 0
    admitted: int = 0
    postponed: Mapping[str, int] = field(default_factory=dict)
    openings: int = 0
    held: int = 0
    waiting: int = 0
    open: tuple[OpenBreaker, ...] = ()
    error: str = ""

    @property
    def remark(self) -> str:
        """A warning for people, or ""."""
        if not self.open:
            return ""
        return self.open[0].state.replace("_", "-") if self.keys < 2 else f"{len(self.open)} open"


def read(client: Any) -> tuple[LimitState, ...]:
    """Every limit, that which was used last first."""
    names = [(name.decode(), last) for name, last in client.zrevrange(keys.LIMITS, 0, LIMITS - 1, withscores=True)]
    if not names:
        return ()
    now = server_time(client)
    with client.pipeline(transaction=False) as pipe:
        for name, _ in names:
            pipe.hgetall(keys.LIMIT + name)
            pipe.zrevrange(keys.LIMIT_KEYS + name, 0, KEYS - 1, withscores=True)
            pipe.zcard(keys.LIMIT_KEYS + name)
        replies = pipe.execute()
    return tuple(
        _state(client, name, last, now, *replies[3 * at : 3 * at + 3]) for at, (name, last) in enumerate(names)
    )


def _state(
    client: Any, name: str, last: float, now: float, record: Mapping[bytes, bytes],
    used: list[tuple[bytes, float]], number: int,
) -> LimitState:  # fmt: skip
    texts = {field.decode(): value.decode("utf-8", "replace") for field, value in record.items()}
    kinds = texts.get("kinds", "").split(",")
    labels = [(label.decode("utf-8", "replace"), at) for label, at in used]
    held = waiting = 0
    breakers: list[OpenBreaker] = []
    with client.pipeline(transaction=False) as pipe:
        for label, _ in labels:
            pipe.zcount(f"{SEMAPHORE}{label}:held", now, "+inf")
            pipe.zcount(f"{SEMAPHORE}{label}:seen", now, "+inf")
            pipe.zcount(f"{RATE}{label}:seen", now, "+inf")
            pipe.hmget(f"{BREAKER}{label}:state", "state", "failures", "failed_at")
        replies = pipe.execute()
    for at, (label, asked) in enumerate(labels):
        permits, for_permits, for_tokens, (state, failures, failed_at) = replies[4 * at : 4 * at + 4]
        held += permits
        waiting += for_permits + for_tokens
        if "breaker" in kinds and state in (b"open", b"half_open"):
            breakers.append(
                OpenBreaker(
                    label,
                    state.decode(),
                    int(failures or 0),
                    max(0.0, now - float(failed_at or now)),
                    max(0.0, now - asked),
                )
            )
    postponed = {kind: int(texts.get(f"{kind}:postponed", 0)) for kind in kinds if kind}
    return LimitState(
        name, texts.get("rule", ""), last, number, int(texts.get("items:admitted", 0)), postponed,
        int(texts.get("breaker:opened", 0)), held, waiting, tuple(breakers), texts.get("error", ""),
    )  # fmt: skip
