"""``celery -A graft html-report --out FILE``: the deployment's state and last day as one page that needs nothing else.

Plots are SVG inside the page, for light and for dark.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click
import redis

from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.scripts.commands.html_report.page import Found, page
from graft.scripts.console import complain, say
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.dead_letters.query import causes
from graft.tasks.health import history, periodic, report_store
from graft.tasks.leaks import findings, samples
from graft.tasks.monitoring import function_stats

LETTERS: Final = 2000  # The newest; older ones are in the count alone.


def gather(bench: Path | None) -> Found:
    """Read it all from Redis; where Beat has noted nothing yet, the present is looked at."""
    with connect() as client:
        health = report_store.last(client) or periodic.examine(client)
        looks = history.read(client)
        return Found(
            name=settings().broker_name,
            at=health.at if not looks else max(health.at, looks[-1].at),
            health=health,
            looks=looks,
            processes=samples.all_series(client),
            leaks=findings.read(client),
            causes=causes(dead_letters.newest(LETTERS)),
            letters=dead_letters.count(),
            callables=function_stats.read(),
            bench=json.loads(bench.read_text()) if bench else None,
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--bench", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Add what `bench --json` wrote."
)
def command(out: Path, bench: Path | None) -> None:
    """Write an HTML page of the deployment's state and last day."""
    try:
        text = page(gather(bench))
    except (redis.RedisError, OSError) as error:
        complain(f"{settings().broker_name} does not answer: {error}")
        raise SystemExit(1) from error
    out.write_text(text, encoding="utf-8")
    say(f"{out} ({len(text) // 1024} KiB)")
