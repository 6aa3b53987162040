"""``celery -A graft doctor``: harmful settings, each with its cause, the evidence and a fix of one line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
import redis
from rich.text import Text

from graft.config.deployment import app as our_app
from graft.config.deployment import settings
from graft.scripts.commands.doctor import facts
from graft.scripts.commands.doctor.rules import ORDER, Problem, examine
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.console import output, say

STYLES: Final = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft doctor",
    "celery -A graft doctor --offline --json",
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.option("--offline", is_flag=True, help="Do not read Redis.")
@click.pass_context
def command(context: click.Context, as_json: bool, offline: bool) -> None:
    """Find harmful settings, each with its remedy.

    Reads the app of -A, the environment, .env and docker-compose.yml in the current directory, Redis, and the
    heartbeats of workers. Exit code 0: no problem, or notes only; 1: warnings; 2: errors.
    """
    app = getattr(context.obj, "app", None) or our_app
    setup = facts.static(app, os.environ, Path.cwd())
    problems: list[Problem] = []
    if not offline:
        try:
            setup = facts.live(setup)
        except (redis.RedisError, OSError) as error:
            problems.append(unreachable(error))
    problems += examine(setup)
    if as_json:
        click.echo(json.dumps([asdict(problem) for problem in problems], indent=2))
    else:
        show_problems(problems)
    raise SystemExit(max((ORDER.index(problem.severity) for problem in problems), default=0))


def unreachable(error: Exception) -> Problem:
    return Problem(
        "error", "broker", "nothing can be sent or run", f"{settings().broker_name} does not answer: {error}",
        "start Redis, or set CELERY_BROKER_URL",
    )  # fmt: skip


def show_problems(problems: list[Problem]) -> None:
    for problem in problems:
        style = STYLES[problem.severity]
        output.print(Text.assemble((f"{problem.severity:<8}", style), (problem.check, "bold"), f": {problem.evidence}"))
        if problem.cause:
            output.print(Text(f"        {problem.cause}", "dim"))
        output.print(Text(f"        → {problem.fix}", "cyan"))
    counts = {severity: sum(problem.severity == severity for problem in problems) for severity in reversed(ORDER)}
    found = ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count)
    say(found + "." if found else "No problem was found.")
