"""``celery -A graft bench``: measures this project and other task queues in one run on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.scripts.commands.options import RedisCommand, examples

if TYPE_CHECKING:
    from rich.console import Console

    from graft.scripts.bench.machine import Machine
    from graft.scripts.bench.run import Outcome


def names(_: click.Context, parameter: click.Parameter, text: str | None) -> list[str]:
    """The parts of a comma-separated option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@click.command(cls=RedisCommand, epilog=examples(
    "celery -A graft bench --list",
    "celery -A graft bench --only noop --quick",
))  # fmt: skip
@click.option("--list", "only_list", is_flag=True, help="List workloads and contenders.")
@click.option("--only", callback=names, metavar="NAME,…", help="Run these workloads, named by workload or group.")
@click.option(
    "--contenders", callback=names, metavar="NAME,…", help="Measure these; by default all that are installed."
)
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1, 1000), help="Measured repetitions.")
@click.option(
    "--budget",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds of one repetition. A contender that needs more runs fewer items, which is marked.",
)
@click.option("--quick", is_flag=True, help="Small sizes, to try the benchmark. They say nothing about speed.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the results to this file."
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write tables to this file.",
)
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with plots."
)
@click.option("--plots", "plots", type=click.Path(path_type=Path, file_okay=False), help="Also write plots as PNG.")
def command(
    only_list: bool,
    only: list[str],
    contenders: list[str],
    repeat: int,
    budget: float,
    quick: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    html_file: Path | None,
    plots: Path | None,
) -> None:
    """Measure speed beside stock Celery, hand-written Redis loops, the standard library and other task queues.

    Starts a private Redis and the workers of each contender, and stops them at the end. Contenders take turns: compare
    ratios within one run, not times of two runs. All results are checked. The table goes to stdout, progress to stderr.
    Other task queues are measured if they are installed: pip install 'celery-graft[bench]'.
    """  # fmt: skip
    from rich.console import Console

    from graft.scripts.bench.contenders import CONTENDERS
    from graft.scripts.bench.machine import Machine
    from graft.scripts.bench.report import as_json, as_markdown, show
    from graft.scripts.bench.run import Outcome, Plan, run
    from graft.scripts.bench.workloads import catalogue, choose
    from graft.scripts.console import complain, say
    from graft.scripts.stack.redis_server import StackError

    cores = len(os.sched_getaffinity(0))
    found = catalogue(quick, cores)
    if only_list:
        _list(Console(soft_wrap=True, highlight=False), quick, cores)
        return
    for path in (json_file, markdown_file, html_file):
        if path is not None and not path.parent.is_dir():
            raise click.BadParameter(f"the directory {path.parent} does not exist")
    if (html_file or plots) and "matplotlib" in _missing():
        raise click.UsageError("plots need matplotlib: pip install 'celery-graft[bench]'")
    try:
        chosen = choose(found, only)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--only") from None
    for name in contenders:
        if name not in CONTENDERS:
            raise click.BadParameter(
                f"there is no contender {name!r}; there are {', '.join(CONTENDERS)}", param_hint="--contenders"
            )
    plan = Plan(chosen, contenders or list(CONTENDERS), repeat, budget, cores)
    load = os.getloadavg()[0]
    outcome, code = Outcome(plan), 0
    try:
        run(outcome, say)
    except StackError as error:
        complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        complain("interrupted; all processes are stopped, and these are the results so far")
        code = 130
    machine = Machine.here(outcome.redis_version, load)
    show(outcome, machine, Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 160))
    if json_file:
        json_file.write_text(as_json(outcome, machine), encoding="utf-8")
    if markdown_file:
        markdown_file.write_text(as_markdown(outcome, machine), encoding="utf-8")
    _draw(outcome, machine, html_file, plots)
    if not code and any(series.failure for series in outcome.series):
        code = 1
    sys.exit(code)


def _draw(outcome: Outcome, machine: Machine, html_file: Path | None, plots: Path | None) -> None:
    if not html_file and not plots:
        return
    from graft.scripts.bench.page import page, write_plots

    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        write_plots(outcome, plots)
    if html_file:
        html_file.write_text(page(outcome, machine), encoding="utf-8")


def _missing() -> list[str]:
    from graft.scripts.bench.contenders.base import version_of

    return [name for name in ("matplotlib",) if version_of(name) is None]


def _list(console: Console, quick: bool, cores: int) -> None:
    from graft.scripts.bench.contenders import CONTENDERS
    from graft.scripts.bench.workloads import catalogue

    console.print("workloads (group: name, content)")
    for workload in catalogue(quick, cores):
        console.print(f"  {workload.group}: {workload.name}, {workload.subject}", markup=False)
    console.print("contenders")
    for name, contender in CONTENDERS.items():
        missing = contender.missing()
        absent = f" (not installed: {', '.join(missing)})" if missing else ""
        console.print(f"  {name}: {contender.title}{absent}", markup=False)
