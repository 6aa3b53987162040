"""The options of programs that start a local stack: ``--lane``, ``--pythonpath``, ``--app`` and ``--queue``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from graft.config.queues import Lane
from graft.scripts.stack.local_stack import LANE_LIMITS, OWN_APP, default_lanes


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
    """The options; :func:`stack_options` makes the arguments of a LocalStack of them."""
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
    parser.add_argument(
        "--app", default=OWN_APP, metavar="APP", help="a project's hardened app, as after celery -A; default: our own"
    )
    parser.add_argument(
        "--queue",
        action="append",
        default=[],
        metavar="NAME",
        help="a queue that the workers read too; may be repeated",
    )


def stack_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a LocalStack but for where it imports from."""
    return {"lanes": lanes_of(arguments), "app": arguments.app, "reads": arguments.queue}


def as_written(arguments: argparse.Namespace) -> dict[str, str]:
    """The options as people write them, the default ones too."""
    return {
        "--lane": ", ".join(sorted(f"{name}={number}" for name, number in lanes_of(arguments).items())),
        "--app": arguments.app,
        "--queue": ", ".join(sorted(arguments.queue)),
        "--pythonpath": ", ".join(str(folder.resolve()) for folder in arguments.pythonpath),
    }


def given(arguments: argparse.Namespace) -> list[str]:
    """The options that somebody has written."""
    found = {
        "--lane": arguments.lane, "--app": arguments.app != OWN_APP, "--queue": arguments.queue,
        "--pythonpath": arguments.pythonpath,
    }  # fmt: skip
    return [name for name, value in found.items() if value]


def lanes_of(arguments: argparse.Namespace) -> dict[Lane, int]:
    """The lanes of the options, or the default ones."""
    return dict(arguments.lane) or default_lanes()
