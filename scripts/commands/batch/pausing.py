"""The commands that hold a batch up and let it go on, whether it is durable or lives with its caller."""

from __future__ import annotations

from typing import Final

import click

from graft.config.deployment import app_name
from graft.config.words import several
from graft.scripts.commands.batch import durable, running
from graft.scripts.commands.options import RedisCommand
from graft.scripts.console import complain, say
from graft.tasks.durable import record as records
from graft.tasks.durable_batch import DurableBatch
from graft.tasks.errors import TaskQueueError
from graft.tasks.sending.progress import BatchNote

NOT_FOUND: Final = 1
NOT_DONE: Final = 1
REFUSED: Final = 2


def wanted(text: str) -> DurableBatch | BatchNote:
    """The batch that *text* stands for; the program ends where there is none."""
    if (record := durable.find(text)) is not None:
        return DurableBatch(record)
    known = running.find(text)
    if known is not None and known.note is not None:
        return known.note
    complain(
        f"{records.unknown(text)}; nor does a caller report a batch of this id now. "
        f"List batches with: celery -A {app_name()} batch list"
    )
    raise SystemExit(NOT_FOUND)


@click.command(cls=RedisCommand)
@click.argument("batch_id", metavar="ID")
def pause(batch_id: str) -> None:
    """Send nothing more of a batch; what was sent is finished.

    Of a batch that is not durable the caller obeys, within two seconds; its time limits go on meanwhile, and the pause
    ends with the caller.
    """
    batch = wanted(batch_id)
    if isinstance(batch, DurableBatch):
        batch.pause()
    else:
        hold(batch, is_paused=True)
    say(f"Paused batch {name_of(batch)}. Go on: batch resume ID")


@click.command(cls=RedisCommand)
@click.argument("batch_id", metavar="ID")
@click.option("--failed", is_flag=True, help="Run the items of a durable batch that have failed once more.")
def resume(batch_id: str, failed: bool) -> None:
    """End the pause of a batch; with --failed, run the failed items of a durable one again, once their cause is mended.

    Start workers anew first where the code was changed: a worker imports it once.
    """
    batch = wanted(batch_id)
    if not isinstance(batch, DurableBatch):
        if failed:
            complain(f"batch {batch.id} is not durable: its caller has its errors, and may submit these items again")
            raise SystemExit(REFUSED)
        hold(batch, is_paused=False)
        say(f"Batch {batch.id} goes on.")
        return
    try:
        count = batch.resume(failed=failed)
    except TaskQueueError as error:
        complain(str(error))
        raise SystemExit(NOT_FOUND) from error
    again = f"{several(count, 'failed item')} of batch" if failed else "Batch"
    verb = ("runs" if count == 1 else "run") + " again" if failed else "goes on"
    say(f"{again} {name_of(batch)} {verb}.")


def hold(note: BatchNote, *, is_paused: bool) -> None:
    """Do it, or say why not and end the program."""
    try:
        obeys = running.hold(note, is_paused=is_paused)
    except ValueError as error:
        complain(str(error))
        raise SystemExit(REFUSED) from error
    if not obeys:
        complain(f"batch {note.id}: its caller {note.caller} was asked, and has not obeyed yet")
        raise SystemExit(NOT_DONE)


def name_of(batch: DurableBatch | BatchNote) -> str:
    return (isinstance(batch, DurableBatch) and batch.name) or batch.id
