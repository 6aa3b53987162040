"""``celery -A graft quarantine list|show|replay|drop``: messages that could not be decoded, verified or routed.

Results go to stdout, everything else to stderr. Nothing is changed without ``--yes`` or a confirmation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from graft.config.deployment import app_name
from graft.config.transport.task_validation import can_verify
from graft.config.words import several
from graft.scripts.commands.options import QueueName, RedisCommandGroup, confirm, examples
from graft.scripts.console import ago, complain, output, say, show
from graft.tasks.queues import peek, quarantined
from graft.tasks.queues.quarantined import Quarantined

NOT_DONE: Final = 1
SHORTEST: Final = 4  # Characters of an id that may stand for it.
SHOWN: Final = 2000  # Bytes of a message that `show` prints.

EXAMPLES: Final = examples(
    "celery -A graft quarantine list             the newest first, with reasons",
    "celery -A graft quarantine show ID          its headers and first bytes",
    "celery -A graft quarantine replay ID --yes  once its cause is removed",
    "celery -A graft quarantine drop --all --yes",
)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """Messages that workers refused: not decodable, not signed by this deployment, or for an unknown task.

    The latest 500 are kept, with the reason and up to 256 KiB of each.
    """


def choosing(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command with the options that choose messages. The command gets them as ``chosen``."""

    @wraps(func)
    def choose(ids: tuple[str, ...], reason: str | None, queue: str | None, everything: bool, **rest: Any) -> Any:
        if not (ids or reason or queue or everything):
            raise click.UsageError("choose messages by an ID, --reason, --queue or --all")
        chosen = [
            one
            for one in quarantined.everything()
            if (not ids or any(len(name) >= SHORTEST and one.id.startswith(name) for name in ids))
            and reason in (None, one.reason)
            and queue in (None, one.queue)
        ]
        if not chosen:
            say("No message in the quarantine matches.")
            raise SystemExit(0)
        return func(chosen=chosen[::-1], **rest)  # The oldest first.

    for decorate in (
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
        click.option("--all", "everything", is_flag=True, help="All messages; needed when no filter is given."),
        click.option("--queue", help="The queue that the message came from."),
        click.option("--reason", help="The reason that `list` shows."),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        choose = decorate(choose)
    return choose


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
def list_messages(as_json: bool) -> None:
    """List the messages in the quarantine, the newest first."""
    found = list(quarantined.everything())
    if as_json:
        for one in found:
            click.echo(json.dumps(as_record(one)))
        return
    if not found:
        say("The quarantine is empty.")
        return
    table = Table("id", "came", "queue", "bytes", box=None, pad_edge=False)
    table.add_column("reason and task", overflow="fold")
    for one in found:
        what = Text(f"{one.reason}: {one.detail}\n{one.message.function or one.message.task}")
        table.add_row(one.id, ago(one.since), one.queue, f"{one.size:,}", what)
    show(table)
    say(f"{several(len(found), 'message')}. Show one: celery -A {app_name()} quarantine show ID")


def as_record(one: Quarantined) -> dict[str, Any]:
    record = asdict(one)
    del record["raw"], record["entry"]
    return {**record, "is_whole": one.is_whole}


@command.command("show")
@click.argument("message_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON.")
def show_message(message_id: str, as_json: bool) -> None:
    """Show one message: why it was refused, what it says of itself, and its first bytes. Nothing is unpickled."""
    found = [one for one in quarantined.everything() if one.id.startswith(message_id)]
    if len(found) != 1:
        complain(f"{len(found) or 'no'} messages in the quarantine begin with {message_id}; list them: quarantine list")
        raise SystemExit(NOT_DONE)
    (one,) = found
    if as_json:
        click.echo(json.dumps({**as_record(one), "raw": one.raw.decode("utf-8", "replace")}, indent=2))
        return
    came = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.since))
    for name, value in (
        ("id", one.id), ("came", f"{came}, {ago(one.since)}"), ("queue", one.queue), ("reason", one.reason),
        ("detail", one.detail), ("task", one.message.task), ("task id", one.message.id), ("what", one.message.what),
        ("bytes", f"{one.size:,}" if one.is_whole else f"{one.size:,}, of which {len(one.raw):,} were kept"),
    ):  # fmt: skip
        output().print(f"{name:<10}{value}", markup=False)
    output().print(f"\n{peek.printable(one.raw[:SHOWN].decode('utf-8', 'replace'))}", markup=False)


@command.command()
@choosing
@click.option("--to", "target", metavar="QUEUE", type=QueueName(), help="Put them on this queue instead of their own.")
def replay(chosen: list[Quarantined], yes: bool, target: str | None) -> None:
    """Put messages back on their queue, the oldest first. Those that workers would refuse again are kept, and named.

    Remove the cause first: deploy the task's module, share the signing key, or upgrade the workers. If this command is
    killed, nothing is lost, and one message may run twice. The exit code is 1 when some messages were kept.
    """
    if not can_verify():
        complain("nothing was done: without GRAFT_SIGNING_KEY no message can be verified; set the deployment's key")
        raise SystemExit(NOT_DONE)
    confirm(f"Send {several(len(chosen), 'message')} again?", yes)
    sent = 0
    for one in chosen:
        try:
            quarantined.replay(one, target)
            sent += 1
        except (quarantined.NotReplayable, ValueError) as error:
            complain(f"{one.id} is kept: {error}")
    say(f"Sent {sent} of {several(len(chosen), 'message')}.")
    if sent < len(chosen):
        raise SystemExit(NOT_DONE)


@command.command()
@choosing
def drop(chosen: list[Quarantined], yes: bool) -> None:
    """Remove messages from the quarantine for good."""
    confirm(f"Remove {several(len(chosen), 'message')} for good?", yes)
    say(f"Removed {several(quarantined.drop(chosen), 'message')}.")
