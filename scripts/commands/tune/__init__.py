"""``celery -A graft tune module:function``: measures one of your functions and recommends settings for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graft.config.queues import Lane
from graft.scripts.commands.options import RedisCommand, examples
from graft.scripts.commands.tune.advice import (
    Cluster,
    Sample,
    break_even_items,
    break_even_seconds,
    concurrency,
    lane,
    recommend,
    verdict,
)
from graft.scripts.commands.tune.sampling import as_request, load_function, load_items, sample
from graft.scripts.console import complain, duration, say
from graft.scripts.stack.local_stack import LocalStack, own_environ
from graft.scripts.stack.redis_server import StackError


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft tune shop:count_words --items 200",
))  # fmt: skip
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "--items",
    required=True,
    metavar="FILE|N",
    help="A file with one JSON value per line (or one JSON list), or N for the numbers from 0 to N-1.",
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.5, 3600),
    help="About how long to measure in this process, and then again on the workers.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write everything to this file."
)
def command(function: str, items: str, seconds: float, json_file: Path | None) -> None:
    """Recommend lane, batch size, concurrency and prefetch for MODULE:FUNCTION, or to run it without workers.

    The function really runs, in this process and on the workers of a private stack: choose items that may be run
    several times. It is imported from the current directory.
    """
    target, values = load_function(function), load_items(items)
    cores = len(os.sched_getaffinity(0))
    say(f"Running {function} in this process")
    try:
        found = sample(target, values, seconds)
    except Exception as error:
        complain(f"{function} raised {type(error).__name__}: {error}; choose items that it can run")
        raise SystemExit(1) from error
    workers = concurrency(found, cores)
    say(f"Running it on {'one io worker' if found.is_async else f'{workers} worker processes'}")
    try:
        cluster = _cluster(function, items, found, workers, seconds)
    except (StackError, subprocess.SubprocessError) as error:
        complain(str(error))
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        complain("interrupted; all processes are stopped")
        raise SystemExit(130) from None
    _show(function, found, cluster, len(values), cores)
    if json_file:
        json_file.write_text(_as_json(function, found, cluster, len(values), cores), encoding="utf-8")


def _cluster(function: str, items: str, found: Sample, workers: int, seconds: float) -> Cluster:
    lanes: dict[Lane, int] = {lane(found): workers}
    with LocalStack(lanes, pythonpath=[Path.cwd()], environ=own_environ()) as stack:
        done = subprocess.run(
            [sys.executable, "-m", "graft.scripts.commands.tune.sampling"],
            env=stack.env,
            input=as_request(function, items, found, 1 if found.is_async else workers, seconds),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"the measurement on the workers failed:\n{done.stderr[-2000:]}")
        measured = json.loads(done.stdout)
    sizes = {int(size): float(cost) for size, cost in measured["sizes"].items()}
    return Cluster(1 if found.is_async else workers, measured["trip"], sizes)


def _show(function: str, found: Sample, cluster: Cluster, items: int, cores: int) -> None:
    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{function}, measured", title_justify="left", show_header=False)
    table.add_row("in this process, one after the other", f"{duration(found.seconds)} per item")
    if found.at_once is not None:
        table.add_row("in this process, 100 at once", f"{duration(found.at_once)} per item")
    table.add_row("of that, processor time", f"{found.busy:.0%}")
    table.add_row("99th percentile", f"{found.slowest:.3g} × the median")
    table.add_row("item and result, pickled", f"{found.size:,.0f} bytes")
    for size, cost in cluster.sizes.items():
        how = f"batch_size={size}" if size else "automatic sizes"
        table.add_row(f"on the workers, {how}", f"{duration(cost)} per item")
    table.add_row("overhead of one item sent alone", duration(cluster.trip))
    console.print(table)
    table = Table("setting", "recommended", "because", title="recommended settings", title_justify="left")
    for each in recommend(found, cluster, items, cores):
        table.add_row(each.setting, each.value, each.reason)
    console.print(table)


def _as_json(function: str, found: Sample, cluster: Cluster, items: int, cores: int) -> str:
    need_items, need_seconds = break_even_items(found, cluster), break_even_seconds(found, cluster)
    return json.dumps(
        {
            "format": 1,
            "function": function,
            "items": items,
            "cores": cores,
            "here": asdict(found),
            "cluster": {"workers": cluster.workers, "trip": cluster.trip, "sizes": cluster.sizes},
            # JSON has no infinity: null is never.
            "break_even_items": need_items if need_items < float("inf") else None,
            "break_even_seconds": need_seconds if need_seconds < float("inf") else None,
            "verdict": verdict(found, cluster, items),
            "recommended": [asdict(each) for each in recommend(found, cluster, items, cores)],
        },
        indent=1,
    )
