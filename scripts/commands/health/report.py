"""The report of Beat's last health check, for people and programs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Final

import click
import redis
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name, settings
from graft.config.queues import table
from graft.config.redis_client import server_time, shared, why_not
from graft.scripts.console import output, say, show
from graft.tasks.health import examination, measure, report_store
from graft.tasks.health.checks import is_starting
from graft.tasks.health.verdicts import ORDER, STALE, HealthReport, HealthState, Verdict
from graft.tasks.monitoring import worker_registry

STYLES: Final = {"ok": "green", "degraded": "yellow", "failing": "bold red"}


def report(as_json: bool, live: bool, everything: bool, history: bool) -> int:
    """Print the last report, with *live* a new one, or with *history* what changed; the exit code."""
    try:
        if history:
            show_history(as_json)
            return 0
        found = current(live)
    except (redis.RedisError, OSError) as error:
        found = unreachable(error)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show_report(found, everything)
    return ORDER.index(found.state)


def current(live: bool = False) -> HealthReport:
    """The last report, or a new one if that is too old. The check "last check" is added to both."""
    client = shared()
    last = report_store.last(client)
    now = server_time(client)
    age = now - last.at if last else None
    limit = max(STALE * settings().health_every, 5.0)
    is_stale = age is None or age > limit
    verdict = freshness(age, limit, None if age is not None else measure.started(worker_registry.workers(client)))
    if last and not is_stale and not live:
        return replace(last, verdicts=(*last.verdicts, verdict))
    report = examination.examine(client)
    return replace(report, verdicts=(*report.verdicts, verdict))


def freshness(age: float | None, limit: float, started: float | None = None) -> Verdict:
    """Says if health checks still run. A task that Beat sends cannot notice that Beat is silent."""
    if age is None and is_starting(started, settings()):
        return Verdict(
            "last check", "", "ok", f"none yet; the workers started {started:.0f} s ago", started, limit, "s"
        )
    if age is None:
        return Verdict(
            "last check", "", "failing", "no check has run yet", None, limit, "s",
            f"start Beat (celery -A {app_name()} beat) and a worker that reads the queue {table().maintenance}",
        )  # fmt: skip
    state: HealthState = "failing" if age > limit else "ok"
    return Verdict(
        "last check", "", state, f"{age:.0f} s ago", age, limit, "s",
        "" if state == "ok" else f"check that Beat runs, and a worker that reads the queue {table().maintenance}",
    )  # fmt: skip


def unreachable(error: Exception) -> HealthReport:
    what, remedy = why_not(error)
    verdict = Verdict("redis", "", "failing", f"{settings().broker_name} {what}: {error}", remedy=remedy)
    return HealthReport(time.time(), (verdict,))


def show_report(report: HealthReport, everything: bool = False) -> None:
    bad = [verdict for verdict in report.verdicts if verdict.state != "ok"]
    shown = report.verdicts if everything else bad
    output().print(Text.assemble(("●", STYLES[report.state]), " ", (report.state, STYLES[report.state])))
    if shown:
        table = Table("", box=None, pad_edge=False)
        table.add_column("check", overflow="fold", max_width=24)
        table.add_column("found", overflow="fold")
        for verdict in sorted(shown, key=lambda verdict: -ORDER.index(verdict.state)):
            found = Text(verdict.detail)
            if verdict.limit is not None and verdict.state != "ok":
                found.append(f" (limit {amount(verdict.limit, verdict.unit)})", "dim")
            if verdict.remedy:
                found.append(f"\n→ {verdict.remedy}", "cyan")
            table.add_row(Text(verdict.state, STYLES[verdict.state]), Text(verdict.name), found)
        show(table)
    fine = len(report.verdicts) - len(bad)
    say(
        f"{fine} of {len(report.verdicts)} checks are ok"
        + ("." if everything or not fine else "; see them with --all.")
    )


def amount(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.0%}"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:,.10g} {unit}".strip()


def show_history(as_json: bool) -> None:
    entries = report_store.past_changes(shared())
    if as_json:
        for at, change in entries:
            click.echo(json.dumps({"at": at, **asdict(change)}))
        return
    if not entries:
        say("No check has changed its state since the checks began.")
        return
    table = Table("when (UTC)", "to", box=None, pad_edge=False)
    table.add_column("check", overflow="fold")
    for at, change in entries[:200]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
        after = change.after or "gone"
        table.add_row(when, Text(after, STYLES.get(after, "dim")), Text(f"{change.name}: {change.detail}"))
    show(table)
