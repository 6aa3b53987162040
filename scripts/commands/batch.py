"""``celery -A graft batch list|show|cancel``: the batches that somebody waits for, and how to stop one.

Results go to stdout, everything else to stderr. Nothing is cancelled without ``--yes`` or an answer at the terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.redis_client import broker, shared
from graft.config.transport.task_validation import can_verify
from graft.scripts.commands.options import HELP, CommandGroup, confirm, examples
from graft.scripts.console import complain, lasting, output, say, several, show
from graft.scripts.snapshot import seconds_left
from graft.tasks.delivery import cancellation
from graft.tasks.queues import peek, purge
from graft.tasks.sending import progress
from graft.tasks.sending.progress import BatchNote

NOT_FOUND: Final = 1
SHORTEST: Final = 4  # Characters of an id that may stand for it.
SETTLES: Final = 6.0  # Seconds in which a caller that lives has heard, and sends no more.
SILENT: Final = 4.0  # Seconds after which a caller that says nothing may be gone.


@dataclass(frozen=True)
class Known:
    """What is known of one batch. ``note`` is what its caller last said; None when no caller says anything."""

    id: str
    note: BatchNote | None
    waiting: int
    held: int
    is_cancelled: bool

    @property
    def is_nothing(self) -> bool:
        return self.note is None and not self.waiting and not self.held


EXAMPLES: Final = examples(
    "celery -A graft batch list",
    "celery -A graft batch show ID     the end of an id is enough",
    "celery -A graft batch cancel ID",
)


@click.group(cls=CommandGroup, context_settings=HELP, epilog=EXAMPLES)
def command() -> None:
    """Batches that run: how far they are, and how to stop one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_batches(as_json: bool) -> None:
    """The batches that somebody waits for, the oldest first; those that take less than a second are not told of."""
    notes = progress.running()
    stopped = cancelled(note.id for note in notes)
    if as_json:
        for note in notes:
            click.echo(json.dumps(as_record(note, note.id in stopped)))
        return
    if not notes:
        say("No batch is running.")
        return
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
            what.append(f"  not heard of for {lasting(silence)}", "yellow")
        table.add_row(
            note.id[-6:], done_of(note), Text(f"{note.failed:,}", "red" if note.failed else ""), f"{note.retries:,}",
            f"{rate(note):,.1f}", "?" if rest is None else lasting(rest), what,
        )  # fmt: skip
    show(table)
    say(f"{several(len(notes), 'batch')}. See one whole: batch show ID; stop one: batch cancel ID")


@command.command("show")
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
def show_batch(batch_id: str, as_json: bool) -> None:
    """One batch: how far it is, and where its messages are."""
    known = look(batch_id)
    if known is None or (known.is_nothing and not known.is_cancelled):
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
            ("caller", f"{note.caller}, heard of {lasting(time.time() - note.at)} ago"),
            ("items", f"{done_of(note)} done, {note.sent - note.done:,} sent and not answered"),
            ("failed", f"{note.failed:,}"),
            ("retries", f"{note.retries:,}"),
            ("runs for", lasting(note.seconds)),
            ("rate", f"{rate(note):,.1f} items/s"),
            ("left", "not known" if rest is None else f"about {lasting(rest)}"),
        ]
    else:
        lines.append(("caller", "nobody waits for it: its caller has ended, or has all its answers"))
    lines.append(("messages", f"{known.waiting:,} waiting, {known.held:,} with workers"))
    if known.is_cancelled:
        lines.append(("state", "cancelled: what has not begun does not run"))
    for name, value in lines:
        output.print(f"{name:<10}{value}", markup=False)


@command.command()
@click.argument("batch_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON.")
def cancel(batch_id: str, yes: bool, as_json: bool) -> None:
    """Keep what has not begun of a batch from running, also across restarts of workers; what runs is finished.

    Its caller stops sending within two seconds; the items that did not run end in CancelledBatchError there, whether
    a worker is alive or not. It cannot be undone.
    """
    known = look(batch_id)
    if known is None or known.is_nothing:
        not_found(batch_id)
        return
    note = known.note
    what = f"{note.function}, {done_of(note)} items done" if note else f"{several(known.waiting, 'message')} waiting"
    confirm(f"Cancel batch {known.id} ({what})?", yes)
    withdrawn = stop(known.id)
    with broker() as client:
        held = peek.held(known.id, client)
    if as_json:
        click.echo(json.dumps({"id": known.id, "messages_withdrawn": withdrawn, "messages_held": held}))
    took = f"; {several(withdrawn, 'waiting message')} taken back" if withdrawn else ""
    say(f"Cancelled batch {known.id}{took}.")
    if held:
        say(f"{several(held, 'message')} with workers: the items that run are finished, the others do not begin.")
    if not can_verify():
        complain("GRAFT_SIGNING_KEY is not set here: waiting messages stay until a worker meets and refuses them")


def stop(batch_id: str) -> int:
    """Cancel, and again while its caller may not have heard; how many waiting messages were taken out."""
    withdrawn = purge.cancel(batch_id)
    deadline = time.monotonic() + SETTLES
    before = None
    while time.monotonic() < deadline:
        note = next((note for note in progress.running() if note.id == batch_id), None)
        # Two words from it, and nothing sent in between: it has heard.
        if note is None or (before is not None and note.at > before.at + progress.EVERY and note.sent == before.sent):
            break
        if time.time() - note.at > SILENT:
            break
        before = before if before is not None and note.sent == before.sent else note
        time.sleep(progress.EVERY / 2)
        withdrawn += purge.cancel(batch_id)
    return withdrawn


def look(batch_id: str) -> Known | None:
    """What is known of the batch with this id, or of the one that runs and whose id ends so.

    Raises:
        UsageError: several do.
    """
    notes = {note.id: note for note in progress.running()}
    meant = [name for name in notes if name == batch_id or (len(batch_id) >= SHORTEST and name.endswith(batch_id))]
    if len(meant) > 1:
        raise click.UsageError(f"several batches end in {batch_id}: {', '.join(meant)}")
    whole = meant[0] if meant else batch_id
    if not meant and not 16 <= len(batch_id) <= 255:
        return None  # No id of a batch, and a search for it would find anything.
    with broker() as client:
        waiting = sum(1 for _ in purge.waiting_of(whole, client))
        return Known(whole, notes.get(whole), waiting, peek.held(whole, client), whole in cancelled([whole]))


def not_found(batch_id: str) -> None:
    complain(
        f"no caller, queue or worker has a batch {batch_id}; it has ended, or was never sent. See: celery -A graft "
        "batch list"
    )
    raise SystemExit(NOT_FOUND)


def cancelled(ids: Iterable[str]) -> set[str]:
    """Those of *ids* that somebody has cancelled."""
    wanted = list(ids)
    flags = shared().mget([cancellation.CANCEL_KEY + each for each in wanted]) if wanted else []
    return {each for each, flag in zip(wanted, flags, strict=True) if flag is not None}


def as_record(note: BatchNote, is_cancelled: bool) -> dict[str, Any]:
    return {**asdict(note), "rate": round(rate(note), 3), "seconds_left": seconds_left(note), "cancelled": is_cancelled}


def rate(note: BatchNote) -> float:
    """Items each second since the batch began."""
    return note.done / note.seconds if note.seconds else 0.0


def done_of(note: BatchNote) -> str:
    return f"{note.done:,} of {'?' if note.total is None else f'{note.total:,}'}"
