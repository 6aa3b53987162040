"""Harmful settings for people and programs, each with its cause, the evidence and a fix of one line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import redis
from rich.text import Text

from graft.config.deployment import settings
from graft.scripts.commands.doctor import facts
from graft.scripts.commands.doctor.rules import ORDER, Problem, examine
from graft.scripts.console import output, say

STYLES: Final = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def report(app: Any, as_json: bool, offline: bool) -> int:
    """Examine *app* with all around it, and print what was found; the exit code."""
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
    return max((ORDER.index(problem.severity) for problem in problems), default=0)


def unreachable(error: Exception) -> Problem:
    return Problem(
        "error", "broker", "nothing can be sent or run", f"{settings().broker_name} does not answer: {error}",
        "start Redis, or set CELERY_BROKER_URL",
    )  # fmt: skip


def show_problems(problems: list[Problem]) -> None:
    for problem in problems:
        style = STYLES[problem.severity]
        output().print(
            Text.assemble((f"{problem.severity:<8}", style), (problem.check, "bold"), f": {problem.evidence}")
        )
        if problem.cause:
            output().print(Text(f"        {problem.cause}", "dim"))
        output().print(Text(f"        → {problem.fix}", "cyan"))
    counts = {severity: sum(problem.severity == severity for problem in problems) for severity in reversed(ORDER)}
    found = ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count)
    say(found + "." if found else "No problem was found.")
