"""Verdicts of the checks, and their changes since the last time. Pure values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

HealthState = Literal["ok", "degraded", "failing"]
ORDER: Final[tuple[HealthState, ...]] = ("ok", "degraded", "failing")
STALE: Final = 3.0  # Periods without a check, after which the last report is too old.
FAILING: Final = 5.0  # A value above its limit is degraded, above so many times the limit failing.


@dataclass(frozen=True)
class Verdict:
    """One check of one *subject* (a queue, a worker, or nothing in particular).

    ``value`` and ``limit`` are in *unit*; None where there is no number. ``remedy`` is dropped where the state is ok.
    """

    check: str
    subject: str
    state: HealthState
    detail: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state == "ok":
            object.__setattr__(self, "remedy", "")

    @property
    def name(self) -> str:
        return f"{self.check} {self.subject}".strip()


@dataclass(frozen=True)
class HealthReport:
    """All verdicts of one check. ``at`` is seconds since the epoch on Redis's clock, ``seconds`` how long it took."""

    at: float
    verdicts: tuple[Verdict, ...]
    seconds: float = 0.0
    by: str = ""
    runs: int = 0
    overlaps: int = 0

    @property
    def state(self) -> HealthState:
        return worst(verdict.state for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": self.state}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> HealthReport:
        """The report that :meth:`as_dict` wrote down."""
        rest = {name: value for name, value in record.items() if name not in ("state", "verdicts")}
        return cls(verdicts=tuple(Verdict(**verdict) for verdict in record["verdicts"]), **rest)


@dataclass(frozen=True)
class Change:
    """A check whose state is not that of the last time; "" before its first and after its last one."""

    name: str
    before: HealthState | Literal[""]
    after: HealthState | Literal[""]
    detail: str
    remedy: str

    @property
    def is_worse(self) -> bool:
        return bool(self.after) and ORDER.index(self.after or "ok") > ORDER.index(self.before or "ok")

    def __str__(self) -> str:
        if not self.after:
            return f"{self.name}: no longer checked (was {self.before})"
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.name}: {self.before or 'ok'} -> {self.after}: {self.detail}{remedy}"


def worst(states: Iterable[HealthState]) -> HealthState:
    """The worst of *states*; "ok" when there are none."""
    return max(states, key=ORDER.index, default="ok")


def grade(value: float, limit: float, failing: float | None = None) -> HealthState:
    """The state of a value that should be small: above *limit* degraded, above *failing* failing."""
    failing = FAILING * limit if failing is None else failing
    return "failing" if value > failing else "degraded" if value > limit else "ok"


def changes(before: Iterable[Verdict], after: Iterable[Verdict]) -> list[Change]:
    """The checks that got worse or better. One that comes or goes while it is ok is no change."""
    old = {verdict.name: verdict for verdict in before}
    new = {verdict.name: verdict for verdict in after}
    found: list[Change] = []
    for name in [*new, *(name for name in old if name not in new)]:
        was, now = old.get(name), new.get(name)
        if (was.state if was else "ok") == (now.state if now else "ok"):
            continue
        shown = now or was
        assert shown is not None
        remedy = now.remedy if now else ""
        found.append(Change(name, was.state if was else "", now.state if now else "", shown.detail, remedy))
    return found
