"""``celery -A graft batch list|show|cancel|…``: batches of callers (running.py) and durable ones (durable.py).

Those that hold one up are in pausing.py.

Results go to stdout, everything else to stderr. Nothing is cancelled without ``--yes`` or a confirmation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.config.redis_client import broker
from graft.config.transport.task_validation import can_verify
from graft.config.words import several
from graft.scripts.commands.batch import durable, pausing, running
from graft.scripts.commands.options import RedisCommandGroup, confirm, examples
from graft.scripts.console import ago, complain, lasting, output, say, show
from graft.scripts.snapshot import seconds_left
from graft.tasks.queues import peek
from graft.tasks.sending.progress import BatchNote

NOT_FOUND: Final = 1
MOST: Final = 50  # Batches without a caller that are shown.

EXAMPLES: Final = examples(
    "celery -A graft batch list",
    "celery -A graft batch show ID     the last characters of the id are enough",
    "celery -A graft batch cancel ID",
    "celery -A graft batch cancel ID --running   end what runs, too",
    "celery -A graft batch pause ID",
    "celery -A graft batch resume ID",
    "celery -A graft batch watch NAME            a durable batch, by id or name",
    "celery -A graft batch results NAME --errors",
    "celery -A graft batch results NAME --json > values.jsonl",
    "celery -A graft batch resume NAME --failed  its failed items once more",
    "celery -A graft batch forget NAME",
)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """List batches, show their progress, pause, resume or cancel one; watch and read durable ones."""


for one in (*durable.commands, pausing.pause, pausing.resume):
    command.add_command(one)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_batches(as_json: bool) -> None:
    """List the durable batches, then the others that run, the oldest first, then those without a caller any more.

    A batch shorter than a second is not shown. Single calls whose messages wait for longer are listed like batches.
    """
    found = running.survey()
    kept, notes, left, stopped = found.durable, found.notes, found.left_behind, found.cancelled
    if as_json:
        for record in kept:
            click.echo(json.dumps(durable.as_record(record)))
        for note in notes:
            click.echo(json.dumps(as_record(note, note.id in stopped)))
        for name, sent in left.items():
            click.echo(json.dumps({"id": name, **asdict(sent), "caller": None, "cancelled": name in stopped}))
        return
    if kept:
        durable.show_all(kept)
    if notes:
        show_running(notes, stopped)
    if left:
        show_left_behind(left, stopped)
    if not kept and not notes and not left:
        say("No batch is running.")


def show_left_behind(left: Mapping[str, peek.Sent], stopped: Collection[str]) -> None:
    table = Table("batch", "sent", "waiting", "with workers", box=None, pad_edge=False)
    table.add_column("callable", overflow="fold")
    for name, sent in islice(left.items(), MOST):
        what = Text(sent.function)
        if name in stopped:
            what.append("  cancelled", "yellow")
        table.add_row(name, ago(sent.since), f"{sent.waiting:,}", f"{sent.held:,}", what)
    show(table)
    hidden = f" ({len(left) - MOST:,} not shown)" if len(left) > MOST else ""
    say(
        f"{several(len(left), 'batch')}{hidden} without a caller: what was sent still runs. "
        "The caller has ended, or these are single calls. Stop one: batch cancel ID"
    )


def show_running(notes: Sequence[BatchNote], stopped: Collection[str]) -> None:
    table = Table("batch", box=None, pad_edge=False)
    for title in ("done", "failed", "retries", "items/s", "left"):
        table.add_column(title, justify="right")
    table.add_column("callable, queue and caller", overflow="fold")
    for note in notes:
        rest = seconds_left(note)
        what = Text(f"{note.function}\n")
        what.append(f"{note.queue}, {note.caller}", "dim")
        if note.id in stopped:
            what.append("  cancelled", "yellow")
        if note.is_paused:
            what.append("  paused", "yellow")
        if (silence := time.time() - note.at) > running.SILENT:
            what.append(f"  caller silent for {lasting(silence)}", "yellow")
        table.add_row(
            note.id[-6:], done_of(note), Text(f"{note.failed:,}", "red" if note.failed else ""), f"{note.retries:,}",
            f"{note.rate:,.1f}", "?" if rest is None else lasting(rest), what,
        )  # fmt: skip
    show(table)
    say(f"{several(len(notes), 'batch')}. Show one: batch show ID. Stop one: batch cancel ID")


@command.command("show")
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
def show_batch(batch_id: str, as_json: bool) -> None:
    """Show the progress of one batch, and where its messages are."""
    if (kept := durable.find(batch_id)) is not None:
        click.echo(json.dumps(durable.as_record(kept), indent=2)) if as_json else durable.show_one(kept)
        return
    known = running.find(batch_id)
    if known is None or (known.is_unknown and not known.is_cancelled):
        not_found(batch_id)
        return
    note = known.note
    if as_json:
        record = as_record(note, known.is_cancelled) if note else {"id": known.id, "cancelled": known.is_cancelled}
        click.echo(json.dumps({**record, "messages_waiting": known.waiting, "messages_held": known.held}, indent=2))
        return
    lines = [("id", known.id)]
    if note is not None:
        rest = seconds_left(note)
        lines += [
            ("callable", note.function),
            ("queue", note.queue),
            ("caller", f"{note.caller}, last seen {ago(note.at)}"),
            ("items", f"{done_of(note)} done, {note.sent - note.done:,} under way"),
            ("failed", f"{note.failed:,}"),
            ("retries", f"{note.retries:,}"),
            ("running for", lasting(note.seconds)),
            ("rate", f"{note.rate:,.1f} items/s"),
            ("left", "unknown" if rest is None else f"about {lasting(rest)}"),
        ]
    else:
        lines.append(("caller", "none: it has ended, or has received all outcomes"))
    lines.append(("messages", f"{known.waiting:,} waiting, {known.held:,} with workers"))
    if note is not None and note.is_paused:
        lines.append(("state", "paused: go on with batch resume"))
    if known.is_cancelled:
        lines.append(("state", "cancelled: items that have not started do not run"))
    for name, value in lines:
        output().print(f"{name:<13}{value}", markup=False)


@command.command()
@click.argument("batch_id", metavar="ID")
@click.option(
    "--running", "ends_running", is_flag=True, help="End the items that run too, instead of letting them finish."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def cancel(batch_id: str, ends_running: bool, yes: bool, as_json: bool) -> None:
    """Cancel a batch: running items are finished, and no other item starts, also after workers restart.

    Workers begin no item of it half a second later, and the caller stops sending within two seconds. Each item that did
    not run raises CancelledBatchError there, whether a worker is alive or not. With --running a coroutine is cancelled,
    and a plain function is interrupted as by a soft time limit. This cannot be undone; the cancelled items of a durable
    batch can be run after all, by batch resume --failed.
    """
    if (record := durable.find(batch_id)) is not None:
        durable.cancel(record, running=ends_running, yes=yes, as_json=as_json)
        return
    known = running.find(batch_id)
    if known is None or known.is_unknown:
        not_found(batch_id)
        return
    note = known.note
    what = f"{note.function}, {done_of(note)} items done" if note else f"{several(known.waiting, 'message')} waiting"
    confirm(f"Cancel batch {known.id} ({what})?", yes)
    withdrawn = running.stop(known.id, running=ends_running)
    with broker() as client:
        held = peek.held(known.id, client)
    if as_json:
        click.echo(json.dumps({"id": known.id, "messages_withdrawn": withdrawn, "messages_held": held}))
    took = f"; {several(withdrawn, 'waiting message')} taken out of the queue" if withdrawn else ""
    say(f"Cancelled batch {known.id}{took}.")
    if held:
        fate = "ended" if ends_running else "finished"
        say(f"{several(held, 'message')} with workers: running items are {fate}, the others do not start.")
    if not can_verify():
        complain(
            "waiting messages stay in their queue until workers skip them, because GRAFT_SIGNING_KEY is not set here"
        )


def not_found(batch_id: str) -> None:
    complain(
        f"no batch {batch_id} was found at a caller, in a queue or in a worker: it has ended, or was never sent. "
        f"List batches with: celery -A {app_name()} batch list"
    )
    raise SystemExit(NOT_FOUND)


def as_record(note: BatchNote, is_cancelled: bool) -> dict[str, Any]:
    return {**asdict(note), "rate": round(note.rate, 3), "seconds_left": seconds_left(note), "cancelled": is_cancelled}


def done_of(note: BatchNote) -> str:
    return f"{note.done:,} of {'?' if note.total is None else f'{note.total:,}'}"
