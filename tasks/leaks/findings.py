"""Series -> findings, with the evidence and the callables that ran; and the findings in Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from graft.config import keys
from graft.config.deployment import app_name
from graft.tasks.leaks import keyspace
from graft.tasks.leaks.correlation import RanMeanwhile, ran_meanwhile
from graft.tasks.leaks.keyspace import RedisSample
from graft.tasks.leaks.samples import RECYCLE, Sample
from graft.tasks.leaks.trend import PROCESS, Grade, Measure, Trend, trend

FINDINGS: Final = f"{keys.LEAKS}findings"
EXPIRES: Final = 3600


@dataclass(frozen=True)
class Finding:
    """Something that grows. ``names`` are the callables that ran while it did, the most correlated first.

    ``per_hour`` is its slope in units, between ``low`` and ``high`` with 99 % confidence. ``process`` is the key of its
    process's series, empty for Redis.
    """

    subject: str
    measure: str
    verdict: Grade
    detail: str
    remedy: str
    names: tuple[str, ...] = ()
    per_hour: float = 0.0
    low: float = 0.0
    high: float = 0.0
    samples: int = 0
    process: str = ""
    role: str = ""


def of_process(series: Sequence[Sample], hold: float) -> list[Finding]:
    """The findings in one process: its growth, and connections that it has borrowed for longer than *hold* seconds."""
    latest = series[-1]
    times = [sample.at for sample in series]
    found = []
    for measure in PROCESS:
        values = [float(getattr(sample, measure.name)) for sample in series]
        how = trend(times, values, measure)
        if how.verdict == "clean":
            continue
        ran = ran_meanwhile(_steps(values, [sample.ran for sample in series]))
        evidence = next(
            (sample.evidence[measure.name] for sample in reversed(series) if measure.name in sample.evidence), []
        )
        most = ", ".join(f"{count} x {name}" for name, count in evidence[:3])
        remedy = (
            f"find the line: celery -A {app_name()} leaks --trace PID; GRAFT_LEAKS_RECYCLE=true replaces such a process"
            if latest.role == "pool"
            else f"find the line: celery -A {app_name()} leaks --trace PID; restart the worker"
        )
        found.append(_finding(latest.process, measure, how, ran, most, remedy, latest.key, latest.role, len(series)))
    return found + _loans(latest, hold)


def _loans(latest: Sample, hold: float) -> list[Finding]:
    if not latest.held:
        return []
    who, seconds = latest.held[0]
    verdict: Grade = "leaking" if seconds > 2 * hold else "suspect"
    detail = f"{len(latest.held)} connections borrowed for more than {hold:.0f} s; {who} has one for {seconds:.0f} s"
    remedy = "give it back after use: async with pool.acquire() as connection"
    return [
        Finding(latest.process, "loans", verdict, detail, remedy, (str(who),), process=latest.key, role=latest.role)
    ]


def of_redis(series: Sequence[RedisSample]) -> list[Finding]:
    """The findings in Redis."""
    times = [sample.at for sample in series]
    found = []
    for name in sorted({name for sample in series for name in sample.values}):
        values = [sample.values.get(name, 0.0) for sample in series]
        measure = keyspace.measure_of(name)
        how = trend(times, values, measure)
        if how.verdict != "clean":
            ran = ran_meanwhile(_steps(values, [sample.ran for sample in series]))
            evidence = series[-1].evidence.get(name, "")
            found.append(_finding("redis", measure, how, ran, evidence, _remedy(name), "", "", len(series)))
    return found


def _remedy(name: str) -> str:
    kind = name.partition(" ")[0]
    if kind in ("keys", "elements"):
        return "give these keys an expiry (SET … EX), or trim them"
    if kind == "connections":
        return "close clients after use; one for each process is enough"
    return "start workers with --without-gossip --without-mingle; end programs that never read their replies"


def _steps(values: Sequence[float], ran: Sequence[Mapping[str, int]]) -> list[tuple[float, Mapping[str, int]]]:
    return [(values[at] - values[at - 1], ran[at]) for at in range(1, len(values))]


def _finding(
    subject: str, measure: Measure, how: Trend, ran: Sequence[RanMeanwhile], evidence: str, remedy: str, process: str,
    role: str, samples: int,
) -> Finding:  # fmt: skip
    minutes = how.span / 60
    detail = f"{how.first:,.0f} -> {how.last:,.0f} {measure.unit} in {minutes:.1f} min, steadily"
    if evidence:
        detail += f" ({evidence})"
    if ran:
        names = ", ".join(f"{one.name} ({one.share:.0%} of the growth)" for one in ran)
        detail += f"; ran meanwhile, which proves nothing: {names}"
    slope = how.slope
    return Finding(
        subject, measure.name, how.verdict, detail, remedy, tuple(one.name for one in ran),
        slope.per_second * 3600, slope.low * 3600, slope.high * 3600, samples, process, role,
    )  # fmt: skip


def keep(findings: Sequence[Finding], client: Any) -> None:
    client.set(FINDINGS, json.dumps([asdict(each) for each in findings]), ex=EXPIRES)


def read(client: Any) -> list[Finding]:
    """The findings of the last check."""
    text = client.get(FINDINGS)
    return [Finding(**{**each, "names": tuple(each["names"])}) for each in json.loads(text)] if text else []


def request_recycling(findings: Sequence[Finding], client: Any) -> None:
    """Have the workers replace their leaking pool processes: each finishes what it runs first."""
    keys = {each.process for each in findings if each.verdict == "leaking" and each.role == "pool"}
    for key in keys:
        client.set(f"{RECYCLE}:{key}", 1, ex=EXPIRES)
