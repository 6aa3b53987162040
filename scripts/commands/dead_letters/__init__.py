"""``celery -A graft dead-letters list|show|replay|drop|export``: envelopes and tasks that failed for good.

Results go to stdout, everything else to stderr. Nothing is changed without ``--yes`` or a confirmation.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.config.words import several
from graft.scripts.commands.dead_letters.options import Chosen, choosing, chosen, found
from graft.scripts.commands.options import QueueName, RedisCommandGroup, confirm, examples
from graft.scripts.console import ago, complain, output, say
from graft.scripts.console import show as show_table
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import Choice, causes
from graft.tasks.dead_letters.store import DeadLetter
from graft.tasks.monitoring import worker_registry

REFUSED: Final = 1  # Some dead letters could not be replayed.

SECRET: Final = re.compile(
    r"""(["'][^"']*(?:passw|secret|token|api_?key|authorization)[^"']*["']\s*:\s*(["']))(?:\\.|(?!\2).)*\2""",
    re.IGNORECASE,
)

EXAMPLES: Final = examples(
    "celery -A graft dead-letters list         causes, the most frequent first",
    "celery -A graft dead-letters list --each  one line for each dead letter",
    "celery -A graft dead-letters show ID      one dead letter with its traceback",
    "celery -A graft dead-letters replay --fingerprint 3fa2 --dry-run",
    "celery -A graft dead-letters replay --fingerprint 3fa2 --rate 5 --yes",
    "celery -A graft dead-letters replay --reason failed --newer-than 1h --yes",
    "celery -A graft dead-letters export --out dead-letters.jsonl",
    "celery -A graft dead-letters drop --older-than 7d --yes",
)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """Envelopes and tasks that failed for good. They are kept until somebody replays or drops them.

    Items and tasks without retries are kept too, with the reason "failed": the newest GRAFT_FAILED_KEPT. These raise no
    alarm, and are replayed or dropped only by --reason failed, --fingerprint or ID.
    """


@command.command("list")
@choosing
@click.option("--each", is_flag=True, help="One line for each dead letter instead of one for each cause.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Lines at most.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_letters(choice: Choice, each: bool, limit: int, as_json: bool) -> None:
    """List dead letters, grouped by cause. The exit code is 0, also when there are none."""
    matching = found(choice, newest_first=True)
    if each:
        show_letters(list(islice(matching, limit)), as_json)
        return
    grouped = causes(matching)
    if as_json:
        for cause in grouped[:limit]:
            click.echo(json.dumps(asdict(cause)))
        return
    if not grouped:
        say("There are no dead letters." if choice.is_everything else "No dead letter matches.")
        return
    table = Table("cause", "count", "items", "last", box=None, pad_edge=False)
    table.add_column("function, reason and error", overflow="fold")
    for cause in grouped[:limit]:
        what = Text(f"{cause.function}  {cause.reason}\n{first_line(cause.error)}")
        table.add_row(cause.fingerprint, str(cause.letters), str(cause.items), ago(cause.last), what)
    show_table(table)
    count = sum(cause.letters for cause in grouped)
    hidden = f", {len(grouped) - limit} not shown (--limit)" if len(grouped) > limit else ""
    counts = f"{several(count, 'dead letter')}, {several(len(grouped), 'cause')}{hidden}"
    say(f"{counts}. List each: dead-letters list --each --fingerprint CAUSE")


def show_letters(letters: list[DeadLetter], as_json: bool) -> None:
    again = dead_letters.replays([letter.id for letter in letters])
    if as_json:
        for letter, replayed in zip(letters, again, strict=True):
            record = {**asdict(letter), "replayed": replayed}
            del record["envelope"], record["traceback"]
            click.echo(json.dumps(record))
        return
    if not letters:
        say("No dead letter matches.")
        return
    table = Table("buried", "items", "runs", "replayed", "queue", box=None, pad_edge=False)
    table.add_column("id and function", overflow="fold")
    for letter, replayed in zip(letters, again, strict=True):
        counts = (str(number) for number in (letter.items, letter.runs, replayed))
        what = Text(f"{letter.id}\n{letter.function}")
        table.add_row(ago(letter.buried_at), *counts, letter.queue or "-", what)
    show_table(table)
    say("Show one with its traceback: dead-letters show ID")


@command.command()
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The whole dead letter as JSON.")
def show(letter_id: str, as_json: bool) -> None:
    """Show one dead letter: its function, error, traceback and items."""
    letter = next(dead_letters.read([letter_id]), None)
    if letter is None:
        complain(
            f"there is no dead letter {letter_id}; list them with: celery -A {app_name()} dead-letters list --each"
        )
        raise SystemExit(1)
    if as_json:
        click.echo(json.dumps(asdict(letter), indent=2))
        return
    buried = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(letter.buried_at))
    for name, value in (
        ("id", letter.id),
        ("buried", f"{buried}, {ago(letter.buried_at)}"),
        ("reason", letter.reason),
        ("cause", letter.fingerprint),
        ("function", letter.function),
        ("task", letter.task),
        ("queue", letter.queue or "not known"),
        ("runs", str(letter.runs)),
        ("replayed", str(dead_letters.replays([letter.id])[0])),
        ("error", letter.error),
        ("items", f"{letter.items}: {preview(letter)}"),
    ):
        output().print(f"{name:<10}{value}", markup=False)
    if letter.traceback:
        output().print(f"\n{letter.traceback.rstrip()}", markup=False)


def preview(letter: DeadLetter, width: int = 500) -> str:
    """The beginning of the items, or why they cannot be shown. Items that are pickled one by one are not opened."""
    from graft.tasks.dead_letters import replay as dead_letter_replay

    if not letter.envelope:
        return "not kept: they took more than 1 MiB"
    if letter.envelope.startswith("{"):
        return masked(letter.envelope)[:width]
    try:
        envelope = dead_letter_replay.open_envelope(letter, letter.envelope)
    except dead_letter_replay.NotReplayable as error:
        return str(error)
    if envelope.packed:
        return "objects of " + ", ".join(f"{len(item)} bytes" for item in envelope.items[:20])
    text = masked(repr(list(envelope.items)))
    return text if len(text) <= width else f"{text[:width]} …"


@command.command()
@choosing
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All dead letters, the reason `failed` left out; needed when no filter is given.",
)
@click.option(
    "--to",
    "target",
    metavar="QUEUE",
    type=QueueName(),
    help="Send to this queue instead of the original one.",
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Dead letters per second."
)
@click.option("--limit", type=click.IntRange(1), help="Replay at most this many, the oldest first.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def replay(
    choice: Choice, everything: bool, target: str | None, rate: float, limit: int | None, dry_run: bool, yes: bool
) -> None:
    """Send dead letters again, the oldest first, at a limited rate. A dead letter is removed once its message is sent.

    If this command is interrupted or killed, nothing is lost: run it again. Then the items of one dead letter may run
    twice. The exit code is 1 when some dead letters could not be replayed; these are kept.
    """
    from graft.tasks.dead_letters import replay as dead_letter_replay

    letters = chosen(choice, everything, limit)
    if dry_run:
        for letter in dead_letters.read([one.id for one in letters]):
            try:
                message = dead_letter_replay.message_of(letter, target)
                click.echo(f"{letter.id}  to {message.queue}  {several(letter.items, 'item')} of {letter.function}")
            except dead_letter_replay.NotReplayable as error:
                click.echo(f"{letter.id}  is kept: {error}")
        say(f"{several(len(letters), 'dead letter')}; nothing was sent (--dry-run).")
        return
    if old := older_than_the_failures(letters):
        say(
            f"Note: {several(len(old), 'worker')} started before the last of these failures, so with the code of then. "
            f"If the code was mended, restart them first: {', '.join(old[:5])}."
        )
    confirm(f"Replay {total(letters)} at {rate:g}/s?", yes)
    sent = refused = 0
    began = time.monotonic()
    for one in letters:
        time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        kept = next(dead_letters.read([one.id]), None)
        if kept is None:  # Another command has replayed or dropped it.
            continue
        try:
            sent += dead_letter_replay.replay(kept, target)
        except dead_letter_replay.NotReplayable as error:
            refused += 1
            complain(f"{one.id} is kept: {error}")
    say(f"Replayed {sent} of {several(len(letters), 'dead letter')}.")
    if refused:
        raise SystemExit(REFUSED)


def older_than_the_failures(letters: Sequence[Chosen]) -> list[str]:
    """The live workers that have run since before the last of *letters* was buried."""
    last = max((letter.buried_at for letter in letters), default=0.0)
    return [worker.name for worker in worker_registry.workers() if 0 < worker.since < last]


@command.command()
@choosing
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All dead letters, the reason `failed` left out; needed when no filter is given.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def drop(choice: Choice, everything: bool, dry_run: bool, yes: bool) -> None:
    """Remove dead letters for good. To keep a copy, `export` them first."""
    letters = chosen(choice, everything)
    if dry_run:
        for letter in letters:
            click.echo(f"{letter.id}  {several(letter.items, 'item')} of {letter.function}")
        say(f"{several(len(letters), 'dead letter')}; nothing was removed (--dry-run).")
        return
    confirm(f"Remove {total(letters)} for good?", yes)
    removed = sum(map(dead_letters.remove, dead_letters.read([one.id for one in letters])))
    say(f"Removed {several(removed, 'dead letter')}.")


@command.command()
@choosing
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write this file, with mode 600, instead of stdout."
)
def export(choice: Choice, out: Path | None) -> None:
    """Write whole dead letters as JSON lines, the oldest first. They contain the items: protect them like your data."""
    count = 0
    # The file appears under its name when it is complete.
    partial = out and out.with_name(out.name + ".partial")
    with _private(partial) if partial else nullcontext(sys.stdout) as file:
        for letter in found(choice):
            file.write(json.dumps(asdict(letter)) + "\n")
            count += 1
    if out and partial:
        partial.replace(out)
    say(f"Exported {several(count, 'dead letter')}{f' to {out}' if out else ''}.")


def _private(path: Path) -> IO[str]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")


def masked(text: str) -> str:
    """*text* with the value of each key that speaks of a secret masked."""
    return SECRET.sub(r"\1**\2", text)


def total(letters: list[Chosen]) -> str:
    return f"{several(len(letters), 'dead letter')} ({several(sum(each.items for each in letters), 'item')})"


def first_line(text: str) -> str:
    return text.partition("\n")[0]
