"""``celery -A graft doctor``: harmful settings, each with its cause, the evidence and a fix of one line."""

from __future__ import annotations

import click

from graft.scripts.commands.options import RedisCommand, examples


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
    from graft.config.deployment import app as our_app
    from graft.scripts.commands.doctor.report import report

    raise SystemExit(report(getattr(context.obj, "app", None) or our_app(), as_json, offline))
