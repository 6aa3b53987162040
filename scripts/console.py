"""Printing and arguments shared by the tools for people. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from graft.config.queues import Lane
from graft.scripts.stack.local_stack import LANE_LIMITS, default_lanes

output = Console(soft_wrap=True, highlight=False, emoji=False)
messages = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def say(message: str) -> None:
    """Tell the person at the terminal, on stderr."""
    messages.print(Text(message))


def complain(message: str) -> None:
    """Say what went wrong, on stderr."""
    messages.print(Text.assemble(("error: ", "bold red"), message))


def show(table: Table) -> None:
    """Print *table*; what goes to a file or another program is as wide as it needs to be."""
    if output.is_terminal:
        output.print(table)
        return
    needed = output.measure(table, options=output.options.update(width=10_000)).maximum
    Console(width=max(output.width, needed), highlight=False, emoji=False).print(table)


def lane(text: str) -> tuple[Lane, int]:
    """``cpu=4`` -> ("cpu", 4), for argparse."""
    name, _, number = text.partition("=")
    for known, limit in LANE_LIMITS.items():
        if name == known:
            if number.isdecimal() and 1 <= int(number) <= limit:
                return known, int(number)
            raise argparse.ArgumentTypeError(f"{text!r}: N in {name}=N must be a whole number from 1 to {limit}")
    raise argparse.ArgumentTypeError(f"{text!r}: the lanes are {' and '.join(f'{known}=N' for known in LANE_LIMITS)}")


def directory(text: str) -> Path:
    """A directory that exists, for argparse."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    """``--lane`` and ``--pythonpath``; read them with ``lanes_of`` and ``arguments.pythonpath``."""
    defaults = ", ".join(f"{name}={number}" for name, number in default_lanes().items())
    parser.add_argument(
        "--lane",
        type=lane,
        action="append",
        default=[],
        metavar="LANE=N",
        help="a worker that runs N items at once: cpu=N processes (at most 256) or io=N (at most 10000); may be given "
        f"once for each lane; default: {defaults}",
    )
    parser.add_argument(
        "--pythonpath",
        type=directory,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory to import from, for the workers and the command; may be repeated",
    )


def lanes_of(arguments: argparse.Namespace) -> dict[Lane, int]:
    """The lanes that were asked for."""
    return dict(arguments.lane) or default_lanes()
