"""Runs the tests of public Celery projects twice, as stock Celery and hardened, and shows which pass only as stock.

    python -m graft.scripts.ecosystem

Downloads each project's source and what its tests need, and runs them on a private Redis. Exit code 1: a test is lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from graft.scripts.console import complain, output, say, show
from graft.scripts.ecosystem import report
from graft.scripts.ecosystem.environments import PreparationError, library, prepare
from graft.scripts.ecosystem.projects import PROJECTS, Project
from graft.scripts.ecosystem.runs import Place, Row, RunError, compare, open_redis
from graft.scripts.stack.local_stack import LocalStack, own_environ
from graft.scripts.stack.redis_server import StackError


def measure(projects: Sequence[Project], keep: Path | None) -> tuple[list[Row], list[str]]:
    """A row for each project, and a sentence for each that could not be compared."""
    rows, failures = [], []
    with ExitStack() as exits:
        made = keep or Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="graft-ecosystem-")))
        folder = made.resolve()
        stack = exits.enter_context(LocalStack({}, environ=own_environ()))
        open_redis(stack)
        for project in projects:
            try:
                say(f"{project.requirement}: downloading it and what its tests need, unless they are there")
                source, python = prepare(project, folder)
                say(f"{project.requirement}: running its tests twice")
                row = compare(stack, project, Place(source, python, library(folder), folder / project.name))
            except (PreparationError, RunError) as error:
                complain(str(error))
                failures.append(str(error))
                continue
            counts = (row.compared.passed_stock, row.compared.passed_hardened, len(row.lost))
            say("{}: {} passed as stock, {} hardened, {} lost".format(project.requirement, *counts))
            rows.append(row)
    return rows, failures


def _chosen(names: Sequence[str] | None, everything: bool, quick: bool = False) -> list[Project]:
    chosen = [project for project in PROJECTS if not names or project.name in names]
    if quick:
        return [replace(project, arguments=project.quick) for project in chosen if project.quick]
    return [
        replace(project, arguments=project.more or project.arguments) if everything else project for project in chosen
    ]


def main(argv: Sequence[str] | None = None) -> int:
    names = [project.name for project in PROJECTS]
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m graft.scripts.ecosystem", description=__doc__, formatter_class=style)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="this project; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the projects, and end")
    parser.add_argument("--everything", action="store_true", help="all of Celery's own integration suite: an hour more")
    parser.add_argument(
        "--quick", action="store_true", help="what CI runs: 40 of Celery's own tests of tasks and canvas"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome of every test to FILE, too")
    parser.add_argument(
        "--from", dest="earlier", action="append", type=Path, metavar="FILE",
        help="run nothing: show what --json wrote to FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of the documentation to FILE")
    parser.add_argument(
        "--keep", type=Path, nargs="?", metavar="FOLDER",
        const=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "celery-graft", "ecosystem"),
        help="keep sources, environments and logs in FOLDER (~/.cache/celery-graft/ecosystem), and use what is there",
    )  # fmt: skip
    given = parser.parse_args(argv)
    if given.list:
        for project in PROJECTS:
            output().print(project.requirement)
        return 0
    failures: list[str] = []
    if given.earlier:
        rows = [row for file in given.earlier for row in report.from_json(file.read_text())]
    else:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # So that everything is cleaned up.
        try:
            rows, failures = measure(_chosen(given.only, given.everything, given.quick), given.keep)
        except (StackError, ChildProcessError) as error:
            complain(str(error))
            return 1
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    show(report.as_table(rows))
    for note in report.notes(rows):
        say(note)
    if given.json:
        given.json.write_text(report.as_json(rows))
    if given.markdown:
        given.markdown.write_text(report.as_page(rows))
    return 1 if failures or any(row.lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
