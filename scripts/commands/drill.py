"""``celery -A graft drill``: breaks a private stack on purpose, ours and stock Celery, and counts lost tasks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from graft.config.queues import Lane
from graft.scripts.commands.options import RedisCommand
from graft.scripts.console import complain, output, say
from graft.scripts.drill.catalogue import FAULTS
from graft.scripts.drill.fault import Fault, FaultResult
from graft.scripts.drill.stage import Kind
from graft.scripts.stack.redis_server import StackError

EPILOG = """
\b
Examples:
  celery -A graft drill --only worker-kill
  celery -A graft drill --scale 1

Each fault gets a Redis and workers of its own, which are removed afterwards; your deployment is not touched. The exit
code is 0 when our workers passed every fault. Tasks are counted in a file, not in the Redis that is broken.
"""


def chosen(only: Sequence[str], lane: Lane = "cpu") -> list[type[Fault]]:
    """The faults named in *only*, in their order. By default all faults of *lane* but the soak."""
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise click.UsageError(f"there is no fault {unknown[0]!r}; there are {', '.join(known)}")
    missing = [name for name in only if lane not in known[name].lanes]
    if missing:
        raise click.UsageError(f"{missing[0]} does not exist on the {lane} lane, which has no pool processes")
    usual = [name for name, fault in known.items() if lane in fault.lanes and fault.by_default]
    return [fault for name, fault in known.items() if name in (only or usual)]


def lasts(faults: Sequence[type[Fault]], scale: float, stock: bool) -> str:
    """About how long the *faults* take. Stock Celery takes as long again."""
    seconds = sum(fault(scale).estimate for fault in faults)
    return f"{seconds * (2.0 if stock else 1.0) / 60:.0f} minutes"


def lines_of(results: Sequence[FaultResult]) -> list[str]:
    """The results as lines for the terminal."""
    lines: list[str] = []
    last = ""
    for one in results:
        if one.fault != last:
            lines += ["", f"{one.fault}: {one.limit}"]
            last = one.fault
        if one.skipped:
            lines.append(f"  {one.kind:5} skipped: {one.skipped}")
            continue
        mark = "passed" if one.passed else "FAILED"
        first = "" if one.seconds is None else f", first run after {one.seconds:.1f} s"
        lines.append(
            f"  {one.kind:5} {mark}  {one.sent:6} sent {one.lost:6} lost {one.doubled:5} doubled {one.ended:3} workers "
            f"ended  ({one.strikes} strikes{first}{'; ' + one.seen if one.seen else ''})"
        )
    return lines


def markdown_of(results: Sequence[FaultResult]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| fault | promised | who | | sent | lost | doubled | most runs | workers ended | first run after | seen |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        first = "" if one.seconds is None else f"{one.seconds:.1f} s"
        seen = one.skipped or f"{one.strikes} strikes" + (f"; {one.seen}" if one.seen else "")
        mark = "skipped" if one.skipped else "passed" if one.passed else "**failed**"
        lines.append(
            f"| {one.fault} | {one.limit} | {one.kind} | {mark} | {one.sent} | {one.lost} | {one.doubled} | {one.runs} "
            f"| {one.ended} | {first} | {seen} |"
        )
    return "\n".join(lines)


@click.command(cls=RedisCommand, epilog=EPILOG)
@click.option(
    "--scale",
    type=click.FloatRange(0.001, 10),
    default=0.05,
    show_default=True,
    help="Size of the drill; 1 is the full one.",
)
@click.option("--only", multiple=True, metavar="FAULT", help="Only this fault; may be repeated.")
@click.option("--lane", type=click.Choice(["cpu", "io"]), default="cpu", show_default=True, help="Lane of our workers.")
@click.option("--stock/--no-stock", default=True, show_default=True, help="Also break stock Celery.")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=1, show_default=True, help="Repeat everything this many times."
)
@click.option("--list", "lists", is_flag=True, help="List the faults and their limits.")
@click.option("--json", "as_json", is_flag=True, help="Print each result as a line of JSON, as soon as it is known.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def command(
    scale: float, only: Sequence[str], lane: Lane, stock: bool, runs: int, lists: bool, as_json: bool, markdown: bool
) -> None:
    """Break a private stack on purpose, and count tasks that are lost, run twice or late."""
    faults = chosen(only, lane)
    if lists:
        for fault in [*faults, *(() if only else [fault for fault in FAULTS if not fault.by_default])]:
            output().print(f"{fault.name:21} {fault.limit}\n{'':21} {(fault.__doc__ or '').strip()}")
        output().print(
            f"\nAbout {lasts(faults, scale, stock)} at --scale {scale:g}, {lasts(faults, 1.0, stock)} at "
            "--scale 1, for which the limits are promised. --only soak takes two hours more."
        )
        return
    kinds: tuple[Kind, ...] = ("ours", "stock") if stock else ("ours",)
    results: list[FaultResult] = []
    try:
        for _ in range(runs):
            for fault in faults:
                for kind in (kind for kind in kinds if kind in fault.kinds):
                    began = time.monotonic()
                    made = fault(scale, lane)
                    result = made.skip(kind) if fault.unavailable() else made.play(kind)
                    results.append(result)
                    mark = "skipped" if result.skipped else "passed" if result.passed else "FAILED"
                    say(f"{result.fault}, {kind}: {mark} ({time.monotonic() - began:.0f} s)")
                    if as_json:
                        click.echo(json.dumps(asdict(result)))
    except StackError as error:
        complain(str(error))
        raise SystemExit(2) from error
    if markdown:
        click.echo(markdown_of(results))
    elif not as_json:
        for line in [f"drill at scale {scale:g}", *lines_of(results)]:
            click.echo(line)
    if not all(result.passed for result in results if result.kind == "ours" and not result.skipped):
        raise SystemExit(1)
