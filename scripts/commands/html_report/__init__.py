"""``celery -A graft html-report --out FILE``: the deployment's state and last day as one page that needs no other file.

Plots are SVG inside the page, for light and for dark.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.scripts.commands.html_report.page import Found, page
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.console import say
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import causes
from graft.tasks.health import examination, history, report_store
from graft.tasks.leaks import findings, samples
from graft.tasks.monitoring import function_stats

LETTERS: Final = 2000  # The newest; older ones are only counted.


def gather(bench: Path | None) -> Found:
    """Read the content of the page from Redis. Without a health report of Beat, the checks run here."""
    with connect() as client:
        health = report_store.last(client) or examination.examine(client)
        recorded = history.read(client)
        return Found(
            name=settings().broker_name,
            at=max(health.at, recorded[-1].at) if recorded else health.at,
            health=health,
            history=recorded,
            processes=samples.all_series(client),
            leaks=findings.read(client),
            causes=causes(dead_letters.read(dead_letters.ids(failed=True)[-LETTERS:])),
            letters=dead_letters.count(),
            callables=function_stats.read(),
            bench=json.loads(bench.read_text()) if bench else None,
        )


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft html-report --out report.html",
))  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--bench",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Add the results in this file of `bench --json`.",
)
def command(out: Path, bench: Path | None) -> None:
    """Write an HTML page of the deployment's state and last day."""
    text = page(gather(bench))
    out.write_text(text, encoding="utf-8")
    say(f"Wrote {out} ({len(text) // 1024} KiB).")
