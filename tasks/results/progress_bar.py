"""A bar for a caller who waits in a terminal: items done, failed and left, and for how long still.

Shown where it is asked for, ``batch.collect(progress=True)`` or ``GRAFT_PROGRESS=1``, and only if stderr is a terminal;
one at a time for each process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from graft.config.deployment import part, settings

if TYPE_CHECKING:
    from graft.tasks.results.outcomes import Progress

EVERY: Final = 0.2  # Seconds between two looks at how far the batch is.


class Watched(Protocol):
    """What a bar is about."""

    @property
    def id(self) -> str: ...
    @property
    def total(self) -> int | None: ...
    def done(self) -> bool: ...
    def progress(self) -> Progress: ...


class _Screen:
    """The terminal of this process, which has room for one bar."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@contextmanager
def progress_bar(outcomes: Watched, is_wanted: bool | None = None) -> Iterator[None]:
    """Show how far *outcomes* are during the block; *is_wanted* None leaves it to ``GRAFT_PROGRESS``."""
    wanted = settings().progress if is_wanted is None else is_wanted
    if not wanted or outcomes.done() or not sys.stderr.isatty():
        yield
        return
    screen = part(_Screen)
    if not screen.lock.acquire(blocking=False):
        yield
        return
    try:
        with _bar() as bar:
            task = bar.add_task(f"batch {outcomes.id[-6:]}", total=outcomes.total, failed="")
            is_over = threading.Event()

            def show() -> None:
                far = outcomes.progress()
                failed = f"{far.failed:,} failed" if far.failed else ""
                bar.update(task, completed=far.done, total=far.total, failed=failed)

            def follow() -> None:
                while not is_over.wait(EVERY):
                    show()

            follower = threading.Thread(target=follow, name="graft-progress-bar", daemon=True)
            follower.start()
            try:
                yield
            finally:
                is_over.set()
                follower.join()
                show()
    finally:
        screen.lock.release()


def _bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TextColumn("[red]{task.fields[failed]}"), progress.TimeElapsedColumn(), progress.TextColumn("left"),
        progress.TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
