"""Runs a Python command in this process, and hardens the Celery app that it makes.

The first app of the process that has a name is meant; with ``--app`` the one of that name. Processes that the command
starts anew, such as those of ``celery multi``, are not reached: put ``graft.harden(app)`` into the project for them.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import celery.app.base

from graft.config.harden import harden
from graft.config.private_names import of_celery, require

require(of_celery.APP)

EXAMPLES: Final = """\
examples:
  python -m graft harden -- celery -A shop worker -l INFO
  python -m graft harden -- celery -A shop doctor
  python -m graft harden --app shop -- gunicorn shop.wsgi
  python -m graft harden -- python manage.py import_orders
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m graft", description="Give a Celery app every guarantee of celery-graft without an edit.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="what", required=True, metavar="harden")
    harden_parser = commands.add_parser(
        "harden", help="run a command with its Celery app hardened", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    harden_parser.add_argument("--app", metavar="NAME", help="the app's name, where the command makes several")
    harden_parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    asked = parser.parse_args(arguments)
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    if not command:
        harden_parser.error("name a command to run, after --")
    harden_the_first(asked.app)
    return run(command)


def harden_the_first(name: str | None = None) -> None:
    """Harden the first app that is made from now on, or the first of that name."""
    done: list[Any] = []

    @when_an_app_is_made
    def harden_first(app: Any) -> None:
        if not done and name in (None, app.main):
            done.append(app)
            harden(app)


def when_an_app_is_made(func: Callable[[Any], None]) -> Callable[[Any], None]:
    """Call *func* with each app that is made from now on, but for the one that Celery makes where it finds none."""
    register: Callable[[Any], None] = celery.app.base._register_app

    def register_and_call(app: Any) -> None:
        register(app)
        if app.main != "default":
            func(app)

    celery.app.base._register_app = register_and_call
    return func


def run(command: Sequence[str]) -> int:
    """Run *command*, a console script, a ``.py`` file or ``python …``, as Python itself would; its exit code."""
    program, *rest = command
    if Path(program).name.startswith("python"):
        program, *rest = rest or [""]
        if program in ("-m", "-c", ""):
            return _run_option(program, rest)
    elif not program.endswith(".py"):
        found = shutil.which(program) or shutil.which(str(Path(sys.executable).with_name(program)))
        if found is None or b"python" not in Path(found).read_bytes()[:200].partition(b"\n")[0]:
            print(
                f"python -m graft harden: {program} is not a Python command, so its app is out of reach",
                file=sys.stderr,
            )
            return 127
        program = found
    sys.argv = [program, *rest]
    sys.path[0] = str(Path(program).resolve().parent)
    runpy.run_path(program, run_name="__main__")
    return 0


def _run_option(option: str, rest: Sequence[str]) -> int:
    if option != "-m" or not rest:
        print("python -m graft harden: name a module with -m, or a program", file=sys.stderr)
        return 2
    sys.argv = list(rest)
    sys.path[0] = os.getcwd()
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    return 0
