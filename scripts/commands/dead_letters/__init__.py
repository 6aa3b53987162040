"""``celery -A graft dead-letters list|show|replay|drop|export``: what no policy will run again, and what to do with it.

Results go to stdout, everything else to stderr. Nothing is changed without ``--yes`` or an answer at the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.queues import names
from graft.scripts.commands.dead_letters.options import choosing, chosen, found
from graft.scripts.commands.options import HELP, CommandGroup, confirm, examples
from graft.scripts.console import ago, complain, output, say, several
from graft.scripts.console import show as show_table
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import Choice, causes
from graft.tasks.dead_letters.store import DeadLetter

REFUSED: Final = 1  # Some letters could not be replayed.

EXAMPLES: Final = examples(
    "celery -A graft dead-letters list            causes, the most frequent first",
    "celery -A graft dead-letters list --letters  one line for each letter",
    "celery -A graft dead-letters show ID         one letter with its traceback",
    "celery -A graft dead-letters replay --fingerprint 3fa2 --dry-run",
    "celery -A graft dead-letters replay --fingerprint 3fa2 --rate 5 --yes",
    "celery -A graft dead-letters export --out letters.jsonl",
    "celery -A graft dead-letters drop --older-than 7d --yes",
)


@click.group(cls=CommandGroup, context_settings=HELP, epilog=EXAMPLES)
def command() -> None:
    """Work that no policy will run again, kept until somebody looks."""


@command.command("list")
@choosing
@click.option("--letters", is_flag=True, help="One line for each letter instead of one for each cause.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Lines at most.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_letters(choice: Choice, letters: bool, limit: int, as_json: bool) -> None:
    """What died, grouped by cause; exit code 0 also when nothing did."""
    matching = found(choice, newest_first=True)
    if letters:
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
    table = Table("cause", "letters", "items", "last", box=None, pad_edge=False)
    table.add_column("function, reason and error", overflow="fold")
    for cause in grouped[:limit]:
        what = Text(f"{cause.function}  {cause.reason}\n{first_line(cause.error)}")
        table.add_row(cause.fingerprint, str(cause.letters), str(cause.items), ago(cause.last), what)
    show_table(table)
    total = sum(cause.letters for cause in grouped)
    hidden = f", {len(grouped) - limit} not shown (--limit)" if len(grouped) > limit else ""
    counts = f"{several(total, 'letter')}, {several(len(grouped), 'cause')}{hidden}"
    say(f"{counts}. See them: dead-letters list --letters --fingerprint CAUSE")


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
    say("See one whole: dead-letters show ID")


@command.command()
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Everything that is kept, as JSON.")
def show(letter_id: str, as_json: bool) -> None:
    """One letter: what it was, why it died, its traceback and its items."""
    letter = next(dead_letters.read([letter_id]), None)
    if letter is None:
        complain(f"there is no dead letter {letter_id}; see: celery -A graft dead-letters list --letters")
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
        output.print(f"{name:<10}{value}", markup=False)
    if letter.traceback:
        output.print(f"\n{letter.traceback.rstrip()}", markup=False)


def preview(letter: DeadLetter, width: int = 500) -> str:
    """The beginning of the items, or why they cannot be shown. Items that are pickled one by one stay closed."""
    from graft.tasks.dead_letters import replay as dead_letter_replay

    if letter.envelope.startswith("{"):
        return letter.envelope[:width]
    try:
        envelope = dead_letter_replay.open_envelope(letter, letter.envelope)
    except dead_letter_replay.NotReplayable as error:
        return str(error)
    if envelope.packed:
        return "objects of " + ", ".join(f"{len(item)} bytes" for item in envelope.items[:20])
    text = repr(list(envelope.items))
    return text if len(text) <= width else f"{text[:width]} …"


@command.command()
@choosing
@click.option("--all", "everything", is_flag=True, help="All letters, where no filter is given.")
@click.option("--to", "target", metavar="QUEUE", type=click.Choice(names()), help="Another queue than the original.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True, help="Letters/s.")
@click.option("--limit", type=click.IntRange(1), help="So many at most, the oldest first.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(
    choice: Choice, everything: bool, target: str | None, rate: float, limit: int | None, dry_run: bool, yes: bool
) -> None:
    """Send letters again, the oldest first, at a bounded rate; each is taken away once its message is on the queue.

    Interrupted or killed, nothing is lost: run it again. Items are run at least once, so the letter that was being
    replayed then may run twice. Exit code 1 when some letters could not be replayed; they stay.
    """
    from graft.tasks.dead_letters import replay as dead_letter_replay

    letters = chosen(choice, everything, limit)
    if dry_run:
        for letter in dead_letters.read([one.id for one in letters]):
            try:
                message = dead_letter_replay.message_of(letter, target)
                click.echo(f"{letter.id}  to {message.queue}  {letter.items} items of {letter.function}")
            except dead_letter_replay.NotReplayable as error:
                click.echo(f"{letter.id}  stays: {error}")
        say(f"{len(letters)} letters; nothing was sent (--dry-run).")
        return
    confirm(f"Replay {len(letters)} letters ({sum(each.items for each in letters)} items) at {rate:g}/s?", yes)
    sent = refused = 0
    began = time.monotonic()
    for one in letters:
        time.sleep(max(0.0, began + sent / rate - time.monotonic()))
        kept = next(dead_letters.read([one.id]), None)
        if kept is None:  # Somebody else's by now.
            continue
        try:
            sent += dead_letter_replay.replay(kept, target)
        except dead_letter_replay.NotReplayable as error:
            refused += 1
            complain(f"{one.id} stays: {error}")
    say(f"Replayed {sent} of {len(letters)} letters.")
    if refused:
        raise SystemExit(REFUSED)


@command.command()
@choosing
@click.option("--all", "everything", is_flag=True, help="All letters, where no filter is given.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(choice: Choice, everything: bool, dry_run: bool, yes: bool) -> None:
    """Remove letters for good; `export` first keeps a copy."""
    letters = chosen(choice, everything)
    if dry_run:
        for letter in letters:
            click.echo(f"{letter.id}  {letter.items} items of {letter.function}")
        say(f"{len(letters)} letters; nothing was removed (--dry-run).")
        return
    confirm(f"Remove {len(letters)} letters ({sum(each.items for each in letters)} items) for good?", yes)
    removed = sum(map(dead_letters.remove, dead_letters.read([one.id for one in letters])))
    say(f"Removed {removed} letters.")


@command.command()
@choosing
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout, mode 600.")
def export(choice: Choice, out: Path | None) -> None:
    """Whole letters as JSON lines, the oldest first. They hold the items: treat them like the data themselves."""
    count = 0
    # The file appears under its name when it is complete.
    partial = out and out.with_name(out.name + ".partial")
    with _private(partial) if partial else nullcontext(sys.stdout) as file:
        for letter in found(choice):
            file.write(json.dumps(asdict(letter)) + "\n")
            count += 1
    if out and partial:
        partial.replace(out)
    say(f"Exported {count} letters{f' to {out}' if out else ''}.")


def _private(path: Path) -> IO[str]:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")


def first_line(text: str) -> str:
    return text.partition("\n")[0]
