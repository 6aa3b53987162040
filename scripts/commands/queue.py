"""``celery -A graft queue list|peek|pause|resume|purge|channels``: waiting messages, and who reads them.

Results go to stdout, everything else to stderr. Nothing is taken out of a queue without ``--yes`` or a confirmation.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.config.queues import purpose
from graft.config.redis_client import shared
from graft.config.transport.task_validation import can_verify
from graft.config.words import several
from graft.scripts import snapshot
from graft.scripts.commands.options import Age, QueueName, RedisCommandGroup, confirm, examples
from graft.scripts.console import complain, lasting, say, show
from graft.tasks.monitoring import worker_registry
from graft.tasks.queues import pause as queue_pause
from graft.tasks.queues import peek as queue_peek
from graft.tasks.queues import purge as queue_purge
from graft.tasks.queues.peek import Waiting
from graft.tasks.shared import channel, pipeline_figures

NOT_DONE: Final = 1
OBEYS: Final = 10.0  # Seconds within which workers stop reading a paused queue, and say so in their heartbeats.


EXAMPLES: Final = examples(
    "celery -A graft queue list                  depth, age, readers, pauses",
    "celery -A graft queue peek batch            the next messages",
    "celery -A graft queue peek batch --group    how many of which callable",
    "celery -A graft queue pause batch           workers stop taking messages",
    "celery -A graft queue resume batch",
    "celery -A graft queue purge low --dry-run   what would be moved",
    "celery -A graft queue purge low --yes       to the dead letters",
    "celery -A graft queue channels              named channels and pipelines",
)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """List queues, peek into one, pause, resume or purge it."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_queues(as_json: bool) -> None:
    """List queues: waiting messages, the age of the oldest, readers, and pauses.

    Messages whose time has not come (countdown, eta, a retry) are counted as later.
    """
    queues = snapshot.take().queues
    if as_json:
        for queue in queues:
            click.echo(json.dumps({**asdict(queue), "purpose": purpose(queue.name)}))
        return
    table = Table("queue", box=None, pad_edge=False)
    for title in ("waiting", "later", "oldest", "readers"):
        table.add_column(title, justify="right")
    table.add_column("")
    table.add_column("purpose", style="dim")
    for queue in queues:
        oldest = "" if queue.oldest is None else lasting(queue.oldest)
        remark = Text(queue.remark, "yellow" if queue.is_paused else "bold red")
        later = f"{queue.later:,}" if queue.later else ""
        table.add_row(queue.name, f"{queue.waiting:,}", later, oldest, str(queue.readers), remark, purpose(queue.name))
    show(table)


@command.command()
@click.argument("queue", type=QueueName())
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Messages at most.")
@click.option("--group", is_flag=True, help="One line for each callable instead of one for each message.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def peek(queue: str, limit: int, group: bool, as_json: bool) -> None:
    """Show the next messages of QUEUE in the order of delivery. Nothing is taken out or unpickled.

    For a message that workers would move to the quarantine, the reason is shown. With --group all messages are counted
    by callable, those with the most first.
    """
    if group:
        show_groups(queue, limit, as_json)
        return
    waiting = queue_peek.peek(queue, limit)
    if not can_verify():
        complain("signatures were not verified, because GRAFT_SIGNING_KEY is not set here")
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


def show_groups(queue: str, limit: int, as_json: bool) -> None:
    found = queue_peek.grouped(queue_peek.every(queue))
    if as_json:
        for group in found[:limit]:
            click.echo(json.dumps(asdict(group)))
        return
    if not found:
        say(f"Nothing waits in {queue}.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("messages", "items", "bytes", "oldest"):
        table.add_column(title, justify="right")
    table.add_column("callable", overflow="fold")
    for group in found[:limit]:
        oldest = "?" if group.oldest is None else lasting(time.time() - group.oldest)
        table.add_row(f"{group.messages:,}", f"{group.items:,}", f"{group.bytes:,}", oldest, Text(group.function))
    show(table)
    hidden = f", {len(found) - limit} not shown (--limit)" if len(found) > limit else ""
    say(f"{several(sum(group.messages for group in found), 'message')}, {several(len(found), 'callable')}{hidden}.")


@command.command()
@click.argument("queues", type=QueueName(), nargs=-1, required=True, metavar="QUEUE...")
def pause(queues: tuple[str, ...]) -> None:
    """Stop all workers from taking messages of QUEUE, workers that start later too. Running tasks are finished.

    This returns when no worker takes from them any more, after about three seconds. New messages wait in the queue;
    nothing fails. The exit code is 1 when a worker still takes after ten seconds: stock workers know no pauses.
    """
    try:
        for queue in queues:
            queue_pause.pause(queue)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if still := readers_of(queues, wait=OBEYS):
        complain(
            f"{', '.join(queues)}: asked to pause, but still read by {', '.join(still[:5])} after {OBEYS:g} s; "
            "do these workers answer?"
        )
        raise SystemExit(NOT_DONE)
    say(f"Paused: {', '.join(queues)}. Resume with: celery -A {app_name()} queue resume {' '.join(queues)}")


def readers_of(queues: Collection[str], wait: float) -> list[str]:
    """The live workers that read one of *queues*, once none does or after *wait* seconds."""
    deadline = time.monotonic() + wait
    while True:
        found = [worker.name for worker in worker_registry.workers() if set(queues) & set(worker.queues)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@command.command()
@click.argument("queues", type=QueueName(), nargs=-1, metavar="QUEUE...")
@click.option("--all", "everything", is_flag=True, help="Every paused queue.")
def resume(queues: tuple[str, ...], everything: bool) -> None:
    """Let workers take messages of QUEUE again."""
    if not queues and not everything:
        raise click.UsageError("name the queues, or give --all")
    for queue in sorted(queue_pause.paused()) if everything else queues:
        say(f"Resumed: {queue}." if queue_pause.resume(queue) else f"{queue} was not paused.")


@command.command()
@click.argument("queue", type=QueueName())
@click.option("--function", metavar="PATTERN", help="Only messages of this callable or task; * and ? are wildcards.")
@click.option("--older-than", "older", type=Age(), help="Only messages sent longer ago than this: 90s, 15m, 2h or 7d.")
@click.option("--drop", is_flag=True, help="Delete the messages instead of keeping them as dead letters.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def purge(
    queue: str, function: str | None, older: float | None, drop: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Move the waiting messages of QUEUE to the dead letters. `dead-letters replay` sends them again.

    Callers get CancelledBatchError for these items at once, and still send the rest of their batch; `batch cancel`
    stops a whole batch. Messages that workers have fetched are not touched. Messages that workers would refuse are
    moved to the quarantine. If this command is interrupted or killed, nothing is lost: run it again.
    """
    if not can_verify():
        complain("nothing was done: without GRAFT_SIGNING_KEY no message can be verified; set the deployment's key")
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
        say(f"{what}; nothing was moved (--dry-run).")
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
            f"celery -A {app_name()} dead-letters replay --reason revoked --queue {queue}"
        )
    if done.quarantined:
        say(f"Quarantined {several(done.quarantined, 'message')} that workers would refuse.")


@command.command("channels")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, each with its kind: channel or pipeline.")
def list_channels(as_json: bool) -> None:
    """List channels and pipelines that programs have given a name.

    For a channel: the values that wait, its capacity, and the living ends on both sides. For a pipeline of the last
    day: what each stage has processed, skipped, and how often it waited for the next.
    """
    client = shared()
    found, pipelines, now = channel.channels(client), pipeline_figures.read(client), time.time()
    if as_json:
        for state in found:
            click.echo(json.dumps({"kind": "channel", **asdict(state)}))
        for figures in pipelines:
            click.echo(json.dumps({"kind": "pipeline", **asdict(figures), "state": figures.state(now)}))
        return
    if not found and not pipelines:
        say("There is no named channel and no named pipeline.")
    if found:
        table = Table("channel", box=None, pad_edge=False)
        for title in ("waiting", "capacity", "senders", "receivers"):
            table.add_column(title, justify="right")
        for state in found:
            full = "bold red" if state.waiting >= state.capacity else ""
            waiting = Text(f"{state.waiting:,}", full)
            table.add_row(state.name, waiting, f"{state.capacity:,}", str(state.senders), str(state.receivers))
        show(table)
    if pipelines:
        table = Table("pipeline", "", "processed", "skipped", "waits", box=None, pad_edge=False)
        for figures in pipelines:
            each = (figures.processed, figures.skipped, figures.waits)
            table.add_row(
                figures.name, figures.state(now), *(" > ".join(f"{number:,}" for number in counts) for counts in each)
            )
        show(table)


def survey(queue: str, wanted: Callable[[Waiting], bool]) -> tuple[Counter[str], int]:
    """The messages of *queue* that are *wanted*, by callable, and how many items they hold."""
    found: Counter[str] = Counter()
    items = 0
    for one in queue_peek.every(queue):
        if one.task not in queue_purge.CHECKS and wanted(one):
            found[one.function or one.task] += 1
            items += one.items
    return found, items
