"""``celery -A graft schedule list``: Beat's entries, when each was last sent, and when it is due next."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app as our_app
from graft.config.deployment import app_name, settings
from graft.config.redis_client import server_time, shared
from graft.config.words import several
from graft.scripts.commands.options import RedisCommandGroup, examples
from graft.scripts.console import ago, lasting, say, show
from graft.tasks.health import beat_schedules, beat_ticks
from graft.tasks.health.beat_schedules import SentEntry
from graft.tasks.queues import overlap
from graft.tasks.results import entry_results
from graft.tasks.results.entry_results import EntryResult


@dataclass(frozen=True)
class Line:
    """One entry. Times are seconds since the epoch; ``next`` is None where it cannot be known.

    ``result`` is how its last run ended, None before any has; ``skipped`` counts what ``overlap=skip`` dropped.
    """

    name: str
    task: str
    schedule: str
    last: float | None
    next: float | None
    overlap: str = "allow"
    missed: str = "once"
    remark: str = ""
    result: EntryResult | None = None
    skipped: int = 0


@click.group(cls=RedisCommandGroup, epilog=examples(
    "celery -A graft schedule list",
    "celery -A graft schedule list --json",
))  # fmt: skip
def command() -> None:
    """List Beat's entries; Celery's own command `beat` starts one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@click.pass_context
def list_entries(context: click.Context, as_json: bool) -> None:
    """List the entries of the app's schedule with their last and next run and result, the next one first.

    An entry that was sent within a week and is not in the app's schedule is listed behind the others.
    """
    app = getattr(context.obj, "app", None) or our_app()
    app.loader.import_default_modules()
    client = shared()
    alive = beat_ticks.alive(client, server_time(client), settings().health_silence)
    found = read(client, app.conf.beat_schedule or {}, alive)
    if as_json:
        for line in found:
            click.echo(json.dumps(asdict(line)))
        return
    table = Table("entry", "schedule", "last run", "next run", "overlap", "missed", box=None, pad_edge=False)
    table.add_column("result", overflow="fold")
    table.add_column("task", overflow="fold")
    for line in found:
        what = Text(line.task)
        if line.remark:
            what.append(f"\n{line.remark}", "yellow")
        last = "never" if line.last is None else ago(line.last)
        due = "?" if line.next is None else when(line.next - time.time())
        skips = f"{line.overlap}, {line.skipped} skipped" if line.skipped else line.overlap
        table.add_row(Text(line.name), line.schedule, last, due, skips, line.missed, result_text(line.result), what)
    show(table)
    if not alive:
        say(f"No Beat has sent anything for {settings().health_silence:g} s. Start one: celery -A {app_name()} beat")
    say(f"{several(len(found), 'entry').replace('entrys', 'entries')}.")


def result_text(result: EntryResult | None) -> Text:
    """How the last run ended, and when, for the table."""
    if result is None:
        return Text("?")
    told = Text(f"{result.outcome} {ago(result.at)}")
    if result.error:
        told.append(f"\n{result.error}", "red")
    return told


def when(seconds: float) -> str:
    return f"in {lasting(seconds)}" if seconds >= 0 else f"{lasting(-seconds)} overdue"


def read(client: Any, entries: Mapping[str, Any], alive: Collection[str]) -> list[Line]:
    """The lines of *entries*, as :func:`lines`, with results and skips; *alive* are the Beats that have sent lately."""
    began = min((one.at for one in beat_schedules.schedules(client) if one.beat in alive), default=None)
    results, skipped = entry_results.read(client), overlap.skipped(client)
    return [
        replace(line, result=results.get(line.name), skipped=skipped.get(line.name, 0))
        for line in lines(entries, beat_schedules.sent(client), time.time(), began)
    ]


def lines(
    entries: Mapping[str, Any], sent: Mapping[str, SentEntry], now: float, began: float | None = None
) -> list[Line]:
    """The lines of *entries*, the next one first; then those of others that were *sent*."""
    found = []
    for name, spec in entries.items():
        was = sent.get(name)
        options = spec.get("options") or {}
        start = datetime.fromtimestamp(was.at if was else began or now, UTC)
        found.append(
            Line(
                name, str(spec["task"]), beat_schedules.words(spec["schedule"]), was.at if was else None,
                beat_schedules.due_after(spec["schedule"], start).timestamp(), options.get("overlap", "allow"),
                options.get("missed", "once"),
            )
        )  # fmt: skip
    gone = [
        Line(name, was.task, "?", was.at, None, remark="not in this app's schedule")
        for name, was in sent.items()
        if name not in entries
    ]
    return [*sorted(found, key=lambda line: line.next or 0), *sorted(gone, key=lambda line: line.name)]
