"""Runs an old program twice, unchanged: in one process and on real workers. Same results, and the seconds of each.

    demo ─┬─ LocalStack: Redis, one worker with a process per core, Flower
          ├─ python -m graft.compat --mode local   stdlib_index.py     the program as it always ran
          ├─ python -m graft.compat --mode cluster stdlib_index.py     the program on the workers
          └─ python -m graft.scripts.old_program.stdlib_chord            its map and reduce through the new API

Each is a process of its own, so that none warms anything up for the next. The table goes to stdout, all else to stderr.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from graft.config.words import several
from graft.scripts.console import complain, messages, output, say
from graft.scripts.old_program.stdlib_survey import count_of_files
from graft.scripts.stack import background
from graft.scripts.stack.local_stack import LocalStack, default_lanes
from graft.scripts.stack.redis_server import StackError, last_lines

PROGRAM = Path(__file__).resolve().parent / "old_program" / "stdlib_index.py"
PATIENCE = 100.0  # Seconds that one run may take; it is ended then.
LOOK_EVERY = 0.05
PROGRESS = re.compile(r"^(\d+) of (\d+) files\n", re.MULTILINE)

Step = Callable[[int, int], None]


class DemoError(Exception):
    """The demo did not show what it promises."""


@dataclass(frozen=True)
class Run:
    """The result of one way to do the work. ``work`` is measured inside the program, ``whole`` is its process."""

    result: dict[str, Any]
    files: int
    items: int
    work: float
    whole: float
    envelopes: int = 0
    retries: int = 0
    stayed: list[str] = field(default_factory=list)  # Calls that did not run on the workers, with the reason.


# ---- the three ways -----------------------------------------------------------------------------------------------


def run_program(mode: str, stack: LocalStack, folder: Path, files: int | None, step: Step) -> Run:
    """The old program through ``graft.compat``."""
    index, seconds, report = (folder / f"{mode}-{name}.json" for name in ("index", "seconds", "calls"))
    argv = ["-m", "graft.compat", "--mode", mode, "--report", str(report), str(PROGRAM)]
    argv += ["--out", str(index), "--seconds-out", str(seconds), *_limit(files)]
    whole = run_python(argv, stack, mode, step)
    result = json.loads(index.read_text())
    rows = json.loads(report.read_text())["calls"]
    return Run(
        result,
        files=result["files"],
        items=sum(row["items"] for row in rows),
        work=json.loads(seconds.read_text()),
        whole=whole,
        envelopes=sum(row["envelopes"] for row in rows),
        retries=sum(row["retries"] for row in rows),
        stayed=[f"{row['call']} of {row['func']}: {row['reason']}" for row in rows if row["where"] != "cluster"],
    )


def run_chord(stack: LocalStack, folder: Path, files: int | None, step: Step) -> Run:
    """The program's own map and reduce functions, through ``graft.submit(…, reduce=…)``."""
    out = folder / "chord.json"
    whole = run_python(
        ["-m", "graft.scripts.old_program.stdlib_chord", "--out", str(out), *_limit(files)], stack, "chord", step
    )
    found = json.loads(out.read_text())
    return Run(
        {"words": found["words"]},
        files=found["files"],
        items=found["files"],
        work=found["seconds"],
        whole=whole,
        envelopes=found["envelopes"],
        retries=found["retries"],
    )


def _limit(files: int | None) -> list[str]:
    return [] if files is None else ["--files", str(files)]


def run_python(argv: Sequence[str], stack: LocalStack, name: str, step: Step) -> float:
    """Run Python with *argv* as a client of *stack* and follow its progress; the seconds that the process lived.

    The guard of the stack starts it, so it ends with the stack, whatever happens to this process.

    Raises:
        DemoError: it failed, or took longer than PATIENCE; with the end of what it said.
        StackError: a process of the stack ended: the program would wait for another worker for ever.
    """
    log = stack.directory / f"{name}.log"
    began = time.perf_counter()
    child = stack.guard.start([sys.executable, *argv], stack.env, log=log)
    try:
        while (status := child.status()) is None:
            time.sleep(LOOK_EVERY)
            _show_progress(log, step)
            stack.check()
            if time.perf_counter() - began > PATIENCE:
                raise DemoError(f"python {' '.join(argv)} took longer than {PATIENCE:g} s")
    finally:
        child.kill()  # Does nothing to one that has ended.
    seconds = time.perf_counter() - began
    _show_progress(log, step)
    if status:
        raise DemoError(f"python {' '.join(argv)} ended with {status}:\n{last_lines(log)}")
    return seconds


def _show_progress(log: Path, step: Step) -> None:
    if found := PROGRESS.findall(log.read_text(errors="replace")):
        done, total = found[-1]
        step(int(done), int(total))


# ---- what is shown ------------------------------------------------------------------------------------------------


@contextmanager
def following(what: str) -> Iterator[Step]:
    """A bar on a terminal; elsewhere one line at each third of the way."""
    if messages().is_terminal:
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=messages()) as progress:
            bar = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(bar, completed=done, total=total)
        return
    began, shown = time.monotonic(), 0

    def line(done: int, total: int) -> None:
        nonlocal shown
        if total and (third := 3 * done // total) > shown:
            shown = third
            say(f"{what}: {done} of {total} files after {time.monotonic() - began:.1f} s")

    yield line


def problems(local: Run, cluster: Run, chord: Run) -> list[str]:
    """Why this demo shows nothing; empty when it does."""
    found = []
    if local.result != cluster.result:
        parts = [name for name in local.result if local.result[name] != cluster.result.get(name)]
        found.append(f"the program's result on the cluster differs from its result in one process: {', '.join(parts)}")
    if chord.result["words"] != local.result["words"]:
        found.append("the map-reduce counted other words than the program")
    if cluster.stayed:
        found.append(f"calls stayed in the program's process: {'; '.join(cluster.stayed)}")
    if not cluster.envelopes:
        found.append("no envelope was sent to the workers")
    return found


def table(local: Run, cluster: Run, chord: Run, workers: str, flower: str) -> Table:
    """The one table. The speed-up compares the seconds of work."""
    runs = (local, cluster, chord)
    agree = (cluster.result == local.result, chord.result["words"] == local.result["words"])
    skipped = f"{len(local.result['skipped']):,}"
    found = Table(title="An old program, unchanged, indexes Python's standard library", title_justify="left")
    found.add_column()
    for heading in ("one process", workers, "as a chord"):
        found.add_column(heading, justify="right")
    found.add_row("files", *(f"{run.files:,}" for run in runs))
    found.add_row("not readable", skipped, f"{len(cluster.result['skipped']):,}", "-")
    found.add_row("items", *(f"{run.items:,}" for run in runs))
    found.add_row("seconds of work", *(f"{run.work:.2f}" for run in runs))
    found.add_row("seconds in all", *(f"{run.whole:.2f}" for run in runs))
    found.add_row("speed-up of work", "1.00", f"{local.work / cluster.work:.2f}", "-")
    found.add_row("envelopes sent", *(f"{run.envelopes:,}" for run in runs))
    found.add_row("retries", *(f"{run.retries:,}" for run in runs))
    found.add_row("result", "-", *("the same" if is_same else "ANOTHER" for is_same in agree))
    # The address of what is about to end would be dead when it is read, with a password in it.
    found.caption = f"Flower: {flower}" if flower else "To look around afterwards: ./scripts/demo --keep"
    return found


# ---- the whole ----------------------------------------------------------------------------------------------------


def worker_processes(stack: LocalStack) -> str:
    number = sum(stack.lanes.values())
    return f"{number} worker process{'es' if number > 1 else ''}"


def announce(stack: LocalStack, files: int | None) -> None:
    """Say what will be done, and how long it takes."""
    what = "its files" if files is None else several(files, "file")
    # The whole library took 40 to 60 s on two cores.
    takes = "about a minute on two cores" if files is None else "less than a minute"
    say(
        f"An old program indexes the standard library ({what}) three times: in one process, on "
        f"{worker_processes(stack)}, and as map-reduce. It takes {takes}, and leaves nothing behind."
    )


def show(stack: LocalStack, files: int | None, *, keeps: bool) -> None:
    """Do the work in each way on *stack*, and print the table.

    Raises:
        DemoError: the ways disagree, or the cluster was not used.
    """
    workers = worker_processes(stack)
    with tempfile.TemporaryDirectory(dir=stack.directory) as name:  # Goes with the stack, whatever happens.
        folder = Path(name)
        with following("in one process") as step:
            local = run_program("local", stack, folder, files, step)
        with following(f"on {workers}") as step:
            cluster = run_program("cluster", stack, folder, files, step)
        with following("map-reduce, as a chord") as step:
            chord = run_chord(stack, folder, files, step)
    stack.check()
    output().print(table(local, cluster, chord, workers, stack.flower_url if keeps else ""))
    if found := problems(local, cluster, chord):
        raise DemoError("\n".join(found))


def keep(stack: LocalStack) -> None:
    """Leave *stack* to ``dev status`` and ``dev down``, as ``dev up`` does."""
    with background.locked_state() as path:
        state = background.State.of(stack)
        state.write(path)
        stack.detach(path)
    say(f"Flower: {stack.flower_url}")
    say(f"Redis:  {stack.redis_url}")
    say("The stack stays up. Stop it with: python -m graft.scripts.dev down")


def refuse_second_stack() -> None:
    """Raise a StackError if there is a stack already that ``--keep`` would take the place of."""
    with background.locked_state() as path:
        state = background.State.read(path)
        if state and state.guard.find():
            raise StackError("a stack is up already; stop it first with: python -m graft.scripts.dev down")
        if state:  # Its guard was killed.
            shutil.rmtree(state.directory, ignore_errors=True)
            path.unlink()


def demonstrate(files: int | None, keeps: bool) -> int:
    """The demo; its exit code."""
    # One lane reads every queue: the program's functions are async, and what they do is computation.
    stack = LocalStack({"cpu": default_lanes()["cpu"]}, pythonpath=[PROGRAM.parent], beat=keeps, flower=True)
    try:
        if keeps:
            refuse_second_stack()
        announce(stack, files)
        with messages().status("starting Redis, workers and Flower"):
            stack.start()
            stack.wait_ready()
        if keeps:
            say(f"Flower shows the workers: {stack.flower_url}")
        show(stack, files, keeps=keeps)
        if keeps:
            keep(stack)
    except (StackError, ChildProcessError, DemoError) as error:
        complain(stack.report(error))
        return 1
    finally:
        stack.stop()  # Does nothing to one that was left up.
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m graft.scripts.demo", description=__doc__.partition("\n")[0],
        epilog="examples: ./scripts/demo        ./scripts/demo --files 200 --keep",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave Redis, workers, Beat and Flower up afterwards")
    parser.add_argument("--files", type=count_of_files, help="take only so many files of the standard library")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # So that everything is cleaned up.
    try:
        return demonstrate(arguments.files, arguments.keep)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
