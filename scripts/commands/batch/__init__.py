"""``celery -A graft batch list|show|cancel|…``: batches that run, durable ones (durable.py), and how to stop one.

Results go to stdout, everything else to stderr. Nothing is cancelled without ``--yes`` or a confirmation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.config.redis_client import broker, shared
from graft.config.transport.task_validation import can_verify
from graft.config.words import several
from graft.scripts.commands.batch import durable
from graft.scripts.commands.options import RedisCommandGroup, confirm, examples
from graft.scripts.console import ago, complain, lasting, output, say, show
from graft.scripts.snapshot import seconds_left
from graft.tasks.delivery import cancellation
from graft.tasks.durable import record as records
from graft.tasks.queues import peek, purge
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote

NOT_FOUND: Final = 1
SHORTEST: Final = 4  # Characters of an id that may stand for it.
SETTLES: Final = 6.0  # Seconds within which a live caller notices the cancel and stops sending.
UNREPORTED: Final = 3.0  # Seconds within which a live caller has reported its batch.
MOST: Final = 50  # Batches without a caller that are shown.
SILENT: Final = 4.0  # Seconds without progress after which the caller may have ended.


@dataclass(frozen=True)
class BatchState:
    """The state of one batch. ``note`` is the progress that its caller last published; None without a caller."""

    id: str
    note: BatchNote | None
    waiting: int
    held: int
    is_cancelled: bool

    @property
    def is_unknown(self) -> bool:
        return self.note is None and not self.waiting and not self.held


EXAMPLES: Final = examples(
    "celery -A graft batch list",
    "celery -A graft batch show ID     the last characters of the id are enough",
    "celery -A graft batch cancel ID",
    "celery -A graft batch cancel ID --running   end what runs, too",
    "celery -A graft batch watch NAME            a durable batch, by id or name",
    "celery -A graft batch results NAME --errors",
    "celery -A graft batch results NAME --json > values.jsonl",
    "celery -A graft batch pause NAME",
    "celery -A graft batch resume NAME",
    "celery -A graft batch resume NAME --failed  its failed items once more",
    "celery -A graft batch forget NAME",
)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """List batches, show their progress, or cancel one; watch, read, pause and resume durable ones."""


for one in durable.commands:
    command.add_command(one)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_batches(as_json: bool) -> None:
    """List the durable batches, then the others that run, the oldest first, then those without a caller any more.

    A batch shorter than a second is not shown. Single calls whose messages wait for longer are listed like batches.
    """
    kept = records.every()
    ids = {record.id for record in kept}
    notes = [note for note in progress.running() if note.id not in ids]
    with broker() as client:
        left = left_behind(peek.batches(client), ids | {note.id for note in notes}, time.time())
    stopped = cancelled([*(note.id for note in notes), *left])
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


def left_behind(sent: Mapping[str, peek.Sent], running: Collection[str], now: float) -> dict[str, peek.Sent]:
    """The batches of *sent* that no caller reports, the oldest first. A caller reports after a second."""
    orphans = {name: one for name, one in sent.items() if name not in running and now - one.since > UNREPORTED}
    return dict(sorted(orphans.items(), key=lambda pair: pair[1].since))


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
        if (silence := time.time() - note.at) > SILENT:
            what.append(f"  caller silent for {lasting(silence)}", "yellow")
        table.add_row(
            note.id[-6:], done_of(note), Text(f"{note.failed:,}", "red" if note.failed else ""), f"{note.retries:,}",
            f"{rate(note):,.1f}", "?" if rest is None else lasting(rest), what,
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
    known = find(batch_id)
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
            ("rate", f"{rate(note):,.1f} items/s"),
            ("left", "unknown" if rest is None else f"about {lasting(rest)}"),
        ]
    else:
        lines.append(("caller", "none: it has ended, or has received all outcomes"))
    lines.append(("messages", f"{known.waiting:,} waiting, {known.held:,} with workers"))
    if known.is_cancelled:
        lines.append(("state", "cancelled: items that have not started do not run"))
    for name, value in lines:
        output().print(f"{name:<13}{value}", markup=False)


@command.command()
@click.argument("batch_id", metavar="ID")
@click.option("--running", is_flag=True, help="End the items that run too, instead of letting them finish.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def cancel(batch_id: str, running: bool, yes: bool, as_json: bool) -> None:
    """Cancel a batch: running items are finished, and no other item starts, also after workers restart.

    Workers begin no item of it half a second later, and the caller stops sending within two seconds. Each item that did
    not run raises CancelledBatchError there, whether a worker is alive or not. With --running a coroutine is cancelled,
    and a plain function is interrupted as by a soft time limit. This cannot be undone; the cancelled items of a durable
    batch can be run after all, by batch resume --failed.
    """
    if (record := durable.find(batch_id)) is not None:
        durable.cancel(record, running=running, yes=yes, as_json=as_json)
        return
    known = find(batch_id)
    if known is None or known.is_unknown:
        not_found(batch_id)
        return
    note = known.note
    what = f"{note.function}, {done_of(note)} items done" if note else f"{several(known.waiting, 'message')} waiting"
    confirm(f"Cancel batch {known.id} ({what})?", yes)
    withdrawn = stop(known.id, running=running)
    with broker() as client:
        held = peek.held(known.id, client)
    if as_json:
        click.echo(json.dumps({"id": known.id, "messages_withdrawn": withdrawn, "messages_held": held}))
    took = f"; {several(withdrawn, 'waiting message')} taken out of the queue" if withdrawn else ""
    say(f"Cancelled batch {known.id}{took}.")
    if held:
        fate = "ended" if running else "finished"
        say(f"{several(held, 'message')} with workers: running items are {fate}, the others do not start.")
    if not can_verify():
        complain(
            "waiting messages stay in their queue until workers skip them, because GRAFT_SIGNING_KEY is not set here"
        )


def stop(batch_id: str, *, running: bool = False) -> int:
    """Cancel, and repeat until the caller has noticed. Returns how many waiting messages were taken out."""
    withdrawn = purge.cancel(batch_id, running=running)
    deadline = time.monotonic() + SETTLES
    before = None
    while time.monotonic() < deadline:
        note = next((note for note in progress.running() if note.id == batch_id), None)
        # The caller has published twice and sent nothing in between: it has noticed.
        if note is None or (before is not None and note.at > before.at + progress.EVERY and note.sent == before.sent):
            break
        if time.time() - note.at > SILENT:
            break
        before = before if before is not None and note.sent == before.sent else note
        time.sleep(progress.EVERY / 2)
        withdrawn += purge.cancel(batch_id)
    return withdrawn


def find(batch_id: str) -> BatchState | None:
    """The state of the batch with this id, or of the running one whose id ends with it.

    Raises:
        UsageError: several ids end with it.
    """
    notes = {note.id: note for note in progress.running()}
    meant = [name for name in notes if name == batch_id or (len(batch_id) >= SHORTEST and name.endswith(batch_id))]
    if len(meant) > 1:
        raise click.UsageError(f"several batches end in {batch_id}: {', '.join(meant)}")
    whole = meant[0] if meant else batch_id
    if not meant and not 16 <= len(batch_id) <= 255:
        return None  # Not an id of a batch. As a search text it would match messages of other batches.
    with broker() as client:
        waiting = sum(1 for _ in purge.waiting_of(whole, client))
        return BatchState(whole, notes.get(whole), waiting, peek.held(whole, client), whole in cancelled([whole]))


def not_found(batch_id: str) -> None:
    complain(
        f"no batch {batch_id} was found at a caller, in a queue or in a worker: it has ended, or was never sent. "
        f"List batches with: celery -A {app_name()} batch list"
    )
    raise SystemExit(NOT_FOUND)


def cancelled(ids: Iterable[str]) -> set[str]:
    """The cancelled ones among *ids*."""
    wanted = list(ids)
    flags = shared().mget([cancellation.CANCEL_KEY + each for each in wanted]) if wanted else []
    return {each for each, flag in zip(wanted, flags, strict=True) if cancellation.is_whole(flag)}


def as_record(note: BatchNote, is_cancelled: bool) -> dict[str, Any]:
    return {**asdict(note), "rate": round(rate(note), 3), "seconds_left": seconds_left(note), "cancelled": is_cancelled}


def rate(note: BatchNote) -> float:
    """Items per second since the batch began."""
    return note.done / note.seconds if note.seconds else 0.0


def done_of(note: BatchNote) -> str:
    return f"{note.done:,} of {'?' if note.total is None else f'{note.total:,}'}"
