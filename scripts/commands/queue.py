"""``celery -A graft queue list|peek|pause|resume|purge``: what waits, and what is to happen to it.

Results go to stdout, everything else to stderr. Nothing is taken out of a queue without ``--yes`` or an answer.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.queues import QUEUES, names
from graft.config.transport.task_validation import can_verify
from graft.scripts import snapshot
from graft.scripts.commands.options import HELP, Age, CommandGroup, confirm, examples
from graft.scripts.console import complain, lasting, say, several, show
from graft.tasks.queues import pause as queue_pause
from graft.tasks.queues import peek as queue_peek
from graft.tasks.queues import purge as queue_purge
from graft.tasks.queues.peek import Waiting

NOT_DONE: Final = 1
PURPOSES: Final = {queue.name: queue.purpose for queue in QUEUES}


class QueueName(click.ParamType):  # type: ignore[type-arg]  # Generic in newer releases of click alone.
    """The name of one of the queues."""

    name = "queue"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in names():
            self.fail(f"there is no queue {value!r}; there are {', '.join(names())}", param, ctx)
        return value


EXAMPLES: Final = examples(
    "celery -A graft queue list                  depth, age, readers, pauses",
    "celery -A graft queue peek batch            what is taken next",
    "celery -A graft queue pause batch           workers take no more of it",
    "celery -A graft queue resume batch",
    "celery -A graft queue purge low --dry-run   what would be taken out",
    "celery -A graft queue purge low --yes       into the dead letters",
)


@click.group(cls=CommandGroup, context_settings=HELP, epilog=EXAMPLES)
def command() -> None:
    """Queues: what waits in them, and who reads them."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_queues(as_json: bool) -> None:
    """Every queue: how many messages wait, since when, who reads it, and whether it is paused."""
    queues = snapshot.take().queues
    if as_json:
        for queue in queues:
            click.echo(json.dumps({**asdict(queue), "purpose": PURPOSES[queue.name]}))
        return
    table = Table("queue", box=None, pad_edge=False)
    for title in ("waiting", "oldest", "readers"):
        table.add_column(title, justify="right")
    table.add_column("")
    table.add_column("purpose", style="dim")
    for queue in queues:
        oldest = "" if queue.oldest is None else lasting(queue.oldest)
        remark = Text(queue.remark, "yellow" if queue.is_paused else "bold red")
        table.add_row(queue.name, f"{queue.waiting:,}", oldest, str(queue.readers), remark, PURPOSES[queue.name])
    show(table)


@command.command()
@click.argument("queue", type=QueueName())
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Messages at most.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def peek(queue: str, limit: int, as_json: bool) -> None:
    """What is taken from QUEUE next, in that order. Messages stay where they are, and nothing is unpickled.

    A message that workers would put into the quarantine instead of running it says why.
    """
    waiting = queue_peek.peek(queue, limit)
    if not can_verify():
        complain("signatures were not verified: GRAFT_SIGNING_KEY is not set here")
    if as_json:
        for one in waiting:
            click.echo(json.dumps(asdict(one)))
        return
    if not waiting:
        say(f"Nothing waits in {queue}.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("prio", "age", "items", "bytes"):
        table.add_column(title, justify="right")
    table.add_column("id and callable", overflow="fold")
    for one in waiting:
        age = "?" if one.sent_at is None else lasting(time.time() - one.sent_at)
        what = Text(f"{one.id}\n{one.function}")
        if one.flaw:
            what.append(f"\nworkers would quarantine it: {queue_peek.printable(one.flaw)}", "red")
        table.add_row(str(one.priority), age, f"{one.items:,}", f"{one.size:,}", what)
    show(table)
    (line,) = [line for line in snapshot.take().queues if line.name == queue]
    say(f"{several(len(waiting), 'message')} of {line.waiting:,}.{' The queue is paused.' if line.is_paused else ''}")


@command.command()
@click.argument("queues", type=QueueName(), nargs=-1, required=True, metavar="QUEUE...")
def pause(queues: tuple[str, ...]) -> None:
    """Have no worker take messages from QUEUE, later workers neither; what runs is finished.

    Workers obey within two seconds. What is sent meanwhile waits; nothing fails.
    """
    try:
        for queue in queues:
            queue_pause.pause(queue)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    say(f"Paused: {', '.join(queues)}. Go on with: celery -A graft queue resume {' '.join(queues)}")


@command.command()
@click.argument("queues", type=QueueName(), nargs=-1, metavar="QUEUE...")
@click.option("--all", "everything", is_flag=True, help="Every queue that is paused.")
def resume(queues: tuple[str, ...], everything: bool) -> None:
    """Have workers read QUEUE again."""
    if not queues and not everything:
        raise click.UsageError("say which queues, or --all")
    for queue in sorted(queue_pause.paused()) if everything else queues:
        say(f"Resumed: {queue}." if queue_pause.resume(queue) else f"{queue} was not paused.")


@command.command()
@click.argument("queue", type=QueueName())
@click.option("--function", metavar="PATTERN", help="Only this callable or task; * and ? are wildcards.")
@click.option("--older-than", "older", type=Age(), help="Only what was sent longer ago than this: 90s, 15m, 2h, 7d.")
@click.option("--drop", is_flag=True, help="Keep nothing of it. Nobody can bring it back.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON.")
def purge(
    queue: str, function: str | None, older: float | None, drop: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Take what waits in QUEUE out of it, into the dead letters: `dead-letters replay` sends it again.

    Callers that wait for it are told at once (CancelledBatchError), and go on sending what they have not sent yet: a
    batch as a whole ends with `batch cancel`. What workers have fetched already is not touched. What they would
    quarantine goes there. Interrupted or killed, nothing is lost: run it again.
    """
    if not can_verify():
        complain("GRAFT_SIGNING_KEY is not set: without it nobody can tell what workers would run; nothing was done")
        raise SystemExit(NOT_DONE)
    now = time.time()

    def wanted(one: Waiting) -> bool:
        if function is not None and not fnmatchcase(one.function, function):
            return False
        return older is None or (one.sent_at is not None and one.sent_at < now - older)

    found, items = survey(queue, wanted)
    count = sum(found.values())
    if not count:
        say(f"Nothing {'matches' if function or older else 'waits'} in {queue}.")
        if as_json:
            click.echo(json.dumps(asdict(queue_purge.Withdrawn())))
        return
    for name, number in found.most_common(10):
        say(f"  {number:,} x {name}")
    what = f"{several(count, 'message')} ({several(items, 'item')}) of {queue}"
    if dry_run:
        say(f"{what}; nothing was taken out (--dry-run).")
        return
    confirm(f"Drop {what} for good?" if drop else f"Move {what} to the dead letters?", yes)
    done = queue_purge.purge(queue, wanted, drop=drop)
    if as_json:
        click.echo(json.dumps(asdict(done)))
    if done.dropped:
        say(f"Dropped {several(done.dropped, 'message')}.")
    if done.dead_letters:
        say(
            f"Moved {several(done.dead_letters, 'message')} to the dead letters. Send them again with: "
            f"celery -A graft dead-letters replay --reason revoked --queue {queue}"
        )
    if done.quarantined:
        say(f"Quarantined {several(done.quarantined, 'message')} that no worker would run.")


def survey(queue: str, wanted: Callable[[Waiting], bool]) -> tuple[Counter[str], int]:
    """The messages of *queue* that are *wanted*, by callable, and how many items they hold."""
    found: Counter[str] = Counter()
    items = 0
    for one in queue_peek.every(queue):
        if one.task not in queue_purge.CHECKS and wanted(one):
            found[one.function or one.task] += 1
            items += one.items
    return found, items
