"""The report's benchmark table, measured: the old optimizer, Celery, Ray and the hybrid, side by side on this machine.

    python -m graft.scripts.comparison

Every way is a process of its own (comparison_ways.py), one after the other, on the same workers: a private stack with
a process per core, or those of CELERY_BROKER_URL. Every result is checked. Beside each figure stands the one that the
report claimed; it had no program behind it. With the sizes and the 30 ms for an item that are used unless others are
given, the old way takes what the report says on one core, so the other columns can be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from graft.config.queues import Lane
from graft.scripts.console import complain, messages, say, show
from graft.scripts.old_program.comparison_ways import WORK, compute
from graft.scripts.stack.local_stack import LocalStack, default_lanes
from graft.scripts.stack.redis_server import StackError, last_lines

WAYS: Final = ("old", "celery", "ray", "hybrid")
SIZES: Final = {"small": 83, "medium": 400, "large": 1_000}
CLAIMED: Final = {  # Seconds, and megabytes.
    "small": {"old": 2.5, "celery": 2.0, "ray": 3.0, "hybrid": 2.0},
    "medium": {"old": 12.0, "celery": 10.0, "ray": 8.0, "hybrid": 8.0},
    "large": {"old": 30.0, "celery": 25.0, "ray": 10.0, "hybrid": 10.0},
    "memory": {"old": 500.0, "celery": 300.0, "ray": 800.0, "hybrid": 400.0},
}
MEASURE: Final = "from graft.scripts.old_program.comparison_ways import main; main()"  # Imported, as workers import it.
LOOK_EVERY: Final = 0.05
MEGABYTE: Final = 1_000_000


class ComparisonError(Exception):
    """A way could not be measured, or gave wrong results."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run. ``rounds`` is how many numbers an item adds up, so that it takes ``seconds`` of one core."""

    work: str
    sizes: dict[str, int]
    seconds: float
    rounds: int
    repeat: int
    ways: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One figure: the median of what was measured, in seconds or megabytes; ``method`` is what ran."""

    measured: tuple[float, ...]
    claimed: float
    method: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.measured)


Rows = dict[str, dict[str, Cell]]  # Row -> way -> figure; a way that was not measured is absent.


# ---- measuring -------------------------------------------------------------------------------------------------------


def rounds_for(seconds: float) -> int:
    """The count of numbers that one core adds up in *seconds*."""
    tried, best = 200_000, float("inf")
    for _ in range(5):
        began = time.perf_counter()
        compute((0, tried, 0.0))
        best = min(best, time.perf_counter() - began)
    return max(1, round(tried * seconds / best))


def run(stack: LocalStack, plan: Plan, way: str) -> dict[str, Any]:
    """Measure *way* once, in a process that ends with *stack*.

    Raises:
        ComparisonError: it failed, or a result was wrong.
        StackError: a process of the stack ended.
    """
    out, log = stack.directory / f"{way}.json", stack.directory / f"{way}.log"
    argv = ["--way", way, "--work", plan.work, "--rounds", str(plan.rounds), "--seconds", str(plan.seconds)]
    argv += ["--out", str(out), *(word for size in plan.sizes.values() for word in ("--size", str(size)))]
    if "ray" in plan.ways:
        argv.append("--ray")
    child = stack.guard.start([sys.executable, "-c", MEASURE, *argv], stack.env, log=log)
    try:
        while (status := child.status()) is None:
            time.sleep(LOOK_EVERY)
            stack.check()
    finally:
        child.kill()  # Does nothing to one that has ended.
    if status:
        raise ComparisonError(f"measuring {way} ended with {status}:\n{last_lines(log)}")
    return checked(way, json.loads(out.read_text()))


def checked(way: str, found: dict[str, Any]) -> dict[str, Any]:
    """The measurements of *way*.

    Raises:
        ComparisonError: a result was wrong.
    """
    if wrong := [str(row["items"]) for row in found["sizes"] if not row["is_right"]]:
        raise ComparisonError(f"{way} gave wrong results for {', '.join(wrong)} items")
    return found


def measure(stack: LocalStack, plan: Plan) -> Rows:
    """Every way in turn, as often as the plan repeats it."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in plan.ways}
    for number in range(plan.repeat):
        for way in plan.ways:
            with messages().status(f"{way}: {', '.join(map(str, plan.sizes.values()))} items"):
                runs[way].append(run(stack, plan, way))
            say(f"measured {way}" + (f", {number + 1} of {plan.repeat}" if plan.repeat > 1 else ""))
    return rows(plan, runs)


def rows(plan: Plan, runs: dict[str, list[dict[str, Any]]]) -> Rows:
    found: Rows = {}
    for at, label in enumerate(plan.sizes):
        found[label] = {
            way: Cell(
                tuple(one["sizes"][at]["seconds"] for one in several),
                CLAIMED[label][way],
                several[-1]["sizes"][at]["method"],
            )
            for way, several in runs.items()
        }
    found["memory"] = {
        way: Cell(tuple(one["memory"] / MEGABYTE for one in several), CLAIMED["memory"][way])
        for way, several in runs.items()
    }
    return found


# ---- what is shown ---------------------------------------------------------------------------------------------------


def as_table(plan: Plan, found: Rows) -> Table:
    """One row for each size and one for the memory; in each cell the measured figure and, in brackets, the claimed."""
    table = Table(title="Measured on this machine (claimed by the report)", title_justify="left")
    table.add_column()
    for way in WAYS:
        table.add_column(way, justify="right")
    for label, cells in found.items():
        unit = "MB" if label == "memory" else "s"
        head = label if label == "memory" else f"{label}, {plan.sizes[label]:,} items"
        table.add_row(head, *(_shown(cells.get(way), CLAIMED[label][way], unit) for way in WAYS))
    sizes = [cells["hybrid"].method for label, cells in found.items() if label != "memory" and "hybrid" in cells]
    table.caption = f"{plan.work}, {plan.seconds * 1000:g} ms an item; the hybrid ran {', '.join(sizes) or 'not'}"
    return table


def _shown(cell: Cell | None, claimed: float, unit: str) -> str:
    if cell is None:
        return f"- ({claimed:g} {unit})"
    return f"{cell.median:.0f} ({claimed:g}) {unit}" if unit == "MB" else f"{cell.median:.2f} ({claimed:g}) {unit}"


def as_json(plan: Plan, found: Rows) -> str:
    """The same with every single figure, and what it was measured on."""
    cells = {
        label: {
            way: {"median": cell.median, "measured": cell.measured, "claimed": cell.claimed, "method": cell.method}
            for way, cell in ways.items()
        }
        for label, ways in found.items()
    }
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": sys.platform}
    item = {"work": plan.work, "seconds": plan.seconds, "rounds": plan.rounds}
    units = {"sizes": "seconds", "memory": "megabytes"}
    return json.dumps({"machine": machine, "item": item, "sizes": plan.sizes, "units": units, "table": cells}, indent=2)


# ---- the whole -------------------------------------------------------------------------------------------------------


def compare(plan: Plan, json_to: Path | None) -> int:
    """Measure, print, and give the exit code."""
    # Workers of one's own read every queue; those of CELERY_BROKER_URL are there already.
    lanes: dict[Lane, int] = {} if os.environ.get("CELERY_BROKER_URL") else {"cpu": default_lanes()["cpu"]}
    stack = LocalStack(lanes)
    try:
        with messages().status("starting Redis and workers"):
            stack.start()
            stack.wait_ready()
        found = measure(stack, plan)
    except (StackError, ChildProcessError, ComparisonError) as error:
        complain(stack.report(error))
        return 1
    finally:
        stack.stop()
    show(as_table(plan, found))
    if "ray" not in plan.ways:
        say("Ray was not measured, because it is not installed: pip install celery-graft[ray]")
    if json_to:
        json_to.write_text(as_json(plan, found) + "\n")
    return 0


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m graft.scripts.comparison", description=__doc__, formatter_class=style)
    for label, size in SIZES.items():
        parser.add_argument(f"--{label}", type=positive, default=size, metavar="N", help=f"items; {size} unless given")
    parser.add_argument("--work", choices=sorted(WORK), default="compute", help="what an item does (default: compute)")
    parser.add_argument("--item-ms", type=positive, default=30, metavar="MS", help="how long it takes (default: 30)")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="measure N times, show the medians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE, too")
    given = parser.parse_args(argv)
    seconds = given.item_ms / 1000
    sizes = {label: getattr(given, label) for label in SIZES}
    ways = tuple(way for way in WAYS if way != "ray" or find_spec("ray"))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # So that everything is cleaned up.
    try:
        return compare(Plan(given.work, sizes, seconds, rounds_for(seconds), given.repeat, ways), given.json)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
