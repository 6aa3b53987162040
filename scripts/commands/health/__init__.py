"""``celery -A graft health``: the report of Beat's last health check. Exit code 0, 1 or 2."""

from __future__ import annotations

import click

from graft.scripts.commands.options import RedisCommand, examples


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft health              what is wrong, and what to do",
    "celery -A graft health --all --json",
))  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--live", is_flag=True, help="Check now instead of reading the last report.")
@click.option("--all", "everything", is_flag=True, help="Also show the checks that are ok.")
@click.option("--history", is_flag=True, help="Show when each check changed its state.")
def command(as_json: bool, live: bool, everything: bool, history: bool) -> None:
    """Show whether the deployment is healthy: each failed check, its limit and a remedy.

    Beat starts a health check every GRAFT_HEALTH_EVERY seconds; this command shows the last report. If there is none,
    or it is old, the checks run here. Exit code 0: ok, 1: degraded, 2: failing.
    """
    from graft.scripts.commands.health.report import report

    raise SystemExit(report(as_json, live, everything, history))
