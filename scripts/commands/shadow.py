"""``celery -A graft shadow``: shares of running programs under ``--shadow`` and ``--canary``, and their verdicts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from graft.compat.shadow import switch
from graft.compat.shadow.switch import Shares
from graft.compat.shadow.verdicts import Verdict
from graft.config.redis_client import shared
from graft.scripts.commands.options import RedisCommandGroup, examples
from graft.scripts.console import ago, complain, say, show

EXAMPLES = examples(
    "celery -A graft shadow show                          what is set, and what went back",
    "celery -A graft shadow verdict nightly               what its running processes have found so far",
    "celery -A graft shadow set nightly --shadow 0.05     every twentieth call also runs in the cluster",
    "celery -A graft shadow set nightly --canary 0.2      the cluster answers every fifth call",
    "celery -A graft shadow set '*'                       every program answers the old way, at once",
    "celery -A graft shadow clear nightly                 the program's own options hold again",
)
SHARE = click.FloatRange(0, 1)


@click.group(cls=RedisCommandGroup, epilog=EXAMPLES)
def command() -> None:
    """Change what running programs shadow or give to the cluster, and see what went back to the old way.

    For programs under `python -m graft.compat --shadow … --canary …` and those that called
    graft.compat.shadow.install(). PROGRAM is the name of the program's file or module, or what --program says; * is
    every program. Programs look each second.
    """


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, each with its kind: setting or back.")
def show_settings(as_json: bool) -> None:
    """Show what is set for which program, and the callables that went back to the old way, with the reason."""
    found, backs = switch.settings_in(shared()), switch.ways_back(shared())
    if as_json:
        for program, shares in found.items():
            click.echo(json.dumps({"kind": "setting", "program": program, **asdict(shares)}))
        for back in backs:
            click.echo(json.dumps({"kind": "back", **back}))
        return
    if not found:
        say("Nothing is set: each program follows its own options.")
    else:
        table = Table("program", box=None, pad_edge=False)
        for title in ("shadow", "canary", "limit"):
            table.add_column(title, justify="right")
        for program, shares in found.items():
            table.add_row(program, f"{shares.shadow:g}", f"{shares.canary:g}", f"{shares.limit:g}")
        show(table)
    if backs:
        table = Table("program", "went back", "", "why", box=None, pad_edge=False)
        for back in backs:
            table.add_row(back["program"], Text(back["callable"], "bold red"), ago(back["at"]), Text(back["why"]))
        show(table)


@command.command("verdict")
@click.argument("program")
@click.option("--json", "as_json", is_flag=True, help="JSON, one object for each process.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the page to this file instead.")
def show_verdict(program: str, as_json: bool, html: Path | None) -> None:
    """Show the verdicts of PROGRAM's processes: of those that run, five seconds old at most, and of the last day.

    The exit code is 1 where one says that something differs here.
    """
    texts = switch.verdicts(shared(), program)
    found = [Verdict.from_json(text) for text in texts]
    if html is not None:
        html.write_text("<hr>".join(verdict.page() for verdict in found), encoding="utf-8")
    elif as_json:
        for text in texts:
            click.echo(json.dumps(json.loads(text)))
    else:
        for verdict in found:
            click.echo(verdict.text())
    if not found:
        say(f"No process of {program} has said anything in the last day.")
    if any(verdict.is_failing("differs") for verdict in found):
        raise SystemExit(1)


@command.command("set")
@click.argument("program")
@click.option("--shadow", type=SHARE, default=0.0, show_default=True, help="Share of the calls that also run there.")
@click.option(
    "--canary", type=SHARE, default=0.0, show_default=True, help="Share of the calls that are answered there."
)
@click.option("--limit", type=SHARE, default=Shares.limit, show_default=True,
              help="Share of differences or errors above which a callable goes back.")  # fmt: skip
def set_shares(program: str, shadow: float, canary: float, limit: float) -> None:
    """Have PROGRAM follow these shares within about a second, instead of its own options; lifts its ways back.

    With * what was set for single programs is forgotten. A shadowed call runs twice. Calls that the cluster has by then
    are answered there.
    """
    if not program or " " in program:
        complain(f"{program!r} is no program's name: it has no spaces; quote '*' for every program")
        raise SystemExit(2)
    switch.put(shared(), program, Shares(shadow, canary, limit))
    say(f"Set for {program}: shadow {shadow:g}, canary {canary:g}, limit {limit:g}.")


@command.command("clear")
@click.argument("program")
def clear_shares(program: str) -> None:
    """Have PROGRAM follow its own options again; lifts its ways back."""
    was_set = switch.clear(shared(), program)
    say(f"{program} follows its own options again." if was_set else f"Nothing was set for {program}.")
