"""Printing for people. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported when something is printed, which help is not.
    from rich.console import Console
    from rich.table import Table


@cache
def output() -> Console:
    """The console on stdout."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, emoji=False)


@cache
def messages() -> Console:
    """The console on stderr."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def say(message: str) -> None:
    """Print *message* on stderr."""
    messages().print(message, markup=False)


def complain(message: str) -> None:
    """Print an error on stderr."""
    from rich.text import Text

    messages().print(Text.assemble(("error: ", "bold red"), message))


def show(table: Table) -> None:
    """Print *table*. In a file or a pipe it is as wide as it needs to be."""
    from rich.console import Console

    if output().is_terminal:
        output().print(table)
        return
    needed = output().measure(table, options=output().options.update(width=10_000)).maximum
    Console(width=max(output().width, needed), highlight=False, emoji=False).print(table)


def ago(moment: float) -> str:
    """``15 min ago``."""
    return f"{lasting(time.time() - moment)} ago"


def lasting(seconds: float) -> str:
    """Seconds, minutes, hours or days: ``90 s``, ``15 min``."""
    seconds = max(0.0, seconds)
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def duration(seconds: float) -> str:
    """Seconds, milliseconds or microseconds: ``1.20 s``, ``3.5 ms``, ``800 µs``."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
