"""The commands for durable batches: results, watch, forget; and their part of list, show and cancel."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from graft.config.redis_client import shared
from graft.config.words import several
from graft.scripts.commands.options import RedisCommand, confirm
from graft.scripts.console import ago, complain, lasting, messages, output, say, show
from graft.tasks.durable import feeder_lease
from graft.tasks.durable import record as records
from graft.tasks.durable.record import BatchRecord
from graft.tasks.durable_batch import DurableBatch
from graft.tasks.envelope import Outcome
from graft.tasks.errors import UnknownBatchError

NOT_FOUND: Final = 1
FAILED: Final = 1  # The exit code of a watch whose batch has failed items.
SHORTEST: Final = 4  # Characters of an id that may stand for it.
SHOWN: Final = 50
LOOK_EVERY: Final = 0.5
COLORS: Final = {
    "later": "dim", "running": "", "paused": "yellow", "cancelled": "yellow", "succeeded": "green", "failed": "red",
}  # fmt: skip
SHOWN_PARTS: Final = (
    "id", "name", "function", "queue", "total", "done", "failed", "retries", "envelopes", "sent", "item_bytes",
    "kept_bytes", "created", "ended",
)  # fmt: skip


def find(text: str) -> BatchRecord | None:
    """The durable batch with this name or id, or the one whose id ends with it.

    Raises:
        UsageError: several ids end with it.
    """
    client = shared()
    found = records.read_all([records.id_of(text, client)], client)
    if not found and len(text) >= SHORTEST:
        found = [record for record in records.every(client) if record.id.endswith(text)]
    if len(found) > 1:
        raise click.UsageError(f"several batches end in {text}: {', '.join(record.id for record in found)}")
    return found[0] if found else None


def wanted(text: str) -> DurableBatch:
    """The batch that *text* stands for; the program ends where there is none."""
    record = find(text)
    if record is None:
        complain(str(records.unknown(text)))
        raise SystemExit(NOT_FOUND)
    return DurableBatch(record)


def as_record(record: BatchRecord) -> dict[str, Any]:
    parts = asdict(record)
    return {name: parts[name] for name in SHOWN_PARTS} | {"state": record.state, "durable": True}


def show_all(found: Sequence[BatchRecord]) -> None:
    """A table of *found*: what is open, and the latest that have ended."""
    shown = sorted(found, key=lambda record: (not record.ended, record.created))[-SHOWN:]
    table = Table("durable batch", "state", box=None, pad_edge=False)
    for title in ("done", "failed", "submitted"):
        table.add_column(title, justify="right")
    table.add_column("callable and queue", overflow="fold")
    for record in sorted(shown, key=lambda record: record.created):
        what = Text(f"{record.function}, ")
        what.append(record.queue, "dim")
        table.add_row(
            record.name or record.id[-6:], Text(record.state, COLORS[record.state]),
            f"{record.done:,} of {record.total:,}", Text(f"{record.failed:,}", "red" if record.failed else ""),
            ago(record.created), what,
        )  # fmt: skip
    show(table)
    hidden = f" ({len(found) - len(shown):,} not shown)" if len(found) > len(shown) else ""
    say(f"{several(len(found), 'durable batch')}{hidden}. Follow one: batch watch ID. Its values: batch results ID")


def show_one(record: BatchRecord) -> None:
    feeder = feeder_lease.holder(shared())
    lines = [
        ("id", record.id),
        ("name", record.name or "none"),
        ("state", record.state),
        ("callable", record.function),
        ("queue", record.queue),
        ("items", f"{record.done:,} of {record.total:,} done, {record.sent:,} under way"),
        ("failed", f"{record.failed:,}"),
        ("retries", f"{record.retries:,}"),
        ("submitted", ago(record.created)),
        ("ran for" if record.ended else "running for", lasting(record.seconds)),
        ("in Redis", f"{record.kept_bytes / 1e6:,.1f} MB of results"),
    ]
    if not record.ended:
        lines.append(("feeder", feeder or "none: no worker lives, or the next one takes over within seconds"))
    for name, value in lines:
        output().print(f"{name:<13}{value}", markup=False)


@click.command(cls=RedisCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--errors", is_flag=True, help="The failed items alone.")
@click.option("--first", type=click.IntRange(1), help="No more than so many.")
@click.option("--follow", is_flag=True, help="Wait for those that are not there yet.")
@click.option(
    "--json", "as_json", is_flag=True, help='JSON lines: {"index": 0, "value": …} or {"index": 0, "error": …}.'
)
def results(batch_id: str, errors: bool, first: int | None, follow: bool, as_json: bool) -> None:
    """Print the results of a durable batch in the order of its items; of a running one those that are there so far.

    What JSON does not know is printed as Python shows it. Read large batches with graft.batch(ID) in a program.
    """
    batch = wanted(batch_id)
    count = 0
    try:
        for outcome in islice(batch.errors() if errors else in_order(batch, follow=follow), first):
            count += 1
            click.echo(as_line(outcome, as_json=as_json))
    except UnknownBatchError as error:
        complain(str(error))
        raise SystemExit(NOT_FOUND) from error
    total = batch.progress()
    if not errors and first is None and count < (total.total or 0):
        say(f"{count:,} of {total.total:,} results: item {count} has none yet. --follow waits for the others.")


def in_order(batch: DurableBatch, *, follow: bool) -> Iterator[Outcome]:
    """The outcomes in the order of the items, all of them or those that are there."""
    for taken in batch.pages(wait=follow):
        yield from taken


def as_line(outcome: Outcome, *, as_json: bool) -> str:
    if not as_json:
        error = outcome.error
        return f"{outcome.index}\t{outcome.value!r}" if error is None else f"{outcome.index}\t{error!r}"
    told = {"value": outcome.value} if outcome.error is None else {"error": repr(outcome.error)}
    return json.dumps({"index": outcome.index, **told}, default=repr)


@click.command(cls=RedisCommand)
@click.argument("batch_id", metavar="ID")
def watch(batch_id: str) -> None:
    """Follow a durable batch until it has ended; the exit code is 1 where items have failed.

    The time left follows from the pace of the last half minute. Leaving (Ctrl-C) ends nothing but the watching.
    """
    batch = wanted(batch_id)
    try:
        follow(batch) if sys.stderr.isatty() else follow_in_lines(batch)
    except UnknownBatchError as error:
        complain(str(error))
        raise SystemExit(NOT_FOUND) from error
    far = batch.progress()
    say(f"{far.done:,} of {far.total:,} done in {lasting(far.seconds)}, {far.failed:,} failed.")
    if far.failed or batch.state == "failed":
        say("The errors: batch results --errors ID. Run these items again: batch resume --failed ID")
        raise SystemExit(FAILED)


def follow(batch: DurableBatch) -> None:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("[red]{task.fields[failed]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=messages()) as bar:
        task = bar.add_task(batch.name or batch.id[-6:], total=batch.total, failed="")
        for record in states(batch):
            failed = f"{record.failed:,} failed" if record.failed else ""
            what = f"{record.name or record.id[-6:]} {'' if record.state == 'running' else record.state}"
            bar.update(task, description=what, completed=record.done, failed=failed)


def follow_in_lines(batch: DurableBatch) -> None:
    """A line for each twentieth, for logs."""
    said = -1
    for record in states(batch):
        if (part := 20 * record.done // max(record.total, 1)) != said:
            said = part
            say(f"{record.done:,} of {record.total:,} done, {record.failed:,} failed, {record.state}")


def states(batch: DurableBatch) -> Iterator[BatchRecord]:
    """The record of *batch* again and again, until it has ended."""
    while True:
        record = records.read(batch.id)
        yield record
        if record.ended:
            return
        time.sleep(LOOK_EVERY)


@click.command(cls=RedisCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def forget(batch_id: str, yes: bool) -> None:
    """Remove a durable batch and its results; what of it has not begun never does. This cannot be undone."""
    batch = wanted(batch_id)
    far = batch.progress()
    confirm(f"Forget batch {batch.name or batch.id}, {far.done:,} of {far.total:,} items done?", yes)
    batch.forget()
    say(f"Forgot batch {batch.name or batch.id}.")


def cancel(record: BatchRecord, *, running: bool, yes: bool, as_json: bool) -> None:
    """Cancel a durable batch: what ``batch cancel`` does with one."""
    confirm(f"Cancel batch {record.name or record.id} ({record.function}, {record.done:,} items done)?", yes)
    DurableBatch(record).cancel(running=running)
    if as_json:
        click.echo(json.dumps(as_record(record) | {"cancelled": True}))
    fate = "ended" if running else "finished"
    say(f"Cancelled batch {record.name or record.id}. Running items are {fate}, the others do not start.")
    if not feeder_lease.holder(shared()):
        say("No worker lives now: its items have their outcome when one does.")


commands: Iterable[click.Command] = (results, watch, forget)
