"""The call report: which old calls ran in the cluster, which stayed on this machine, and why.

Every facade records its calls in :func:`calls`; ``python -m graft.compat`` prints the report when the program ends.
"""

from __future__ import annotations

import json
import operator
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TextIO

from graft.compat.placement import Placement, Where
from graft.compat.pool_figures import PoolShape
from graft.config.deployment import part
from graft.tasks.callables.importable import name_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graft.tasks.results.outcomes import Progress

PIPE_WIDTH: Final = 80  # Columns of a report that is not written to a terminal.
# Names and reasons are long, so each has lines of its own; the figures stand in columns below them.
HEADINGS: Final = ("calls", "items", "seconds", "envelopes", "retries", "failed")
WIDTHS: Final = (18, 13, 13, 12, 10, 9)
SECTIONS: Final[dict[Where, tuple[str, str]]] = {
    "cluster": ("in the cluster", "green"),
    "local": ("on this machine", "yellow"),
}


@dataclass(frozen=True, slots=True)
class CallReportEntry:
    """One call of an old interface, or the sum of those that differ in their figures only.

    ``reason`` says why it ran where it did; ``seconds`` are the caller's wall time. Of a program's own ``pool``, they
    are those in which it had calls under way, ``busy`` is the calls' own time on workers, and ``home`` what they would
    have taken in processes of this machine.
    """

    call: str
    func: str
    where: Where
    reason: str
    items: int
    seconds: float = 0.0
    envelopes: int = 0
    retries: int = 0
    failures: int = 0
    calls: int = 1
    busy: float = 0.0
    home: float = 0.0
    pool: PoolShape | None = None

    @property
    def title(self) -> str:
        """Its name, and which pool it is."""
        return f"{self.call} {self.pool}" if self.pool else self.call

    def details(self) -> Iterator[str]:
        """What is known of the calls of a pool that moved, in sentences."""
        if self.pool is None or self.where == "local":
            return
        yield f"{self.busy:,.2f} s of work on workers; at home about {self.home:,.2f} s"
        if self.advice:
            yield self.advice

    @property
    def advice(self) -> str:
        """What to change so that a pool that moved gains more; empty where nothing stands out."""
        if self.pool is None or self.where == "local":
            return ""
        return self.pool.advice(self.calls, self.busy, self.seconds, self.home)


class ReportedCall:
    """A call under way; :meth:`close` records it.

    Args:
        call: name of the old call.
        func: the caller's own function.
    """

    def __init__(self, call: str, func: Callable[..., Any], placement: Placement, items: int) -> None:
        self.call = call
        self.func = name_of(func)
        self.placement = placement
        self.items = items
        self.began = time.perf_counter()

    def close(self, *, failed: bool, progress: Progress | None = None) -> None:
        """Record the call; *progress* is that of its batch, if it was sent."""
        calls().record(
            CallReportEntry(
                call=self.call,
                func=self.func,
                where=self.placement.where,
                reason=self.placement.reason,
                items=self.items,
                seconds=time.perf_counter() - self.began,
                envelopes=progress.envelopes if progress else 0,
                retries=progress.retries if progress else 0,
                failures=failed,
            )
        )


class CallReport:
    """Sums of calls, by call, function, placement and reason; threads may record at once."""

    def __init__(self) -> None:
        self.after_fork()
        # Sums in the order of the entry's figures: single calls are recorded one by one, so this has to be quick.
        self._rows: dict[tuple[str, str, Where, str, PoolShape | None], Sequence[float]] = {}

    def after_fork(self) -> None:
        """After a fork: the lock may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def record(self, entry: CallReportEntry) -> None:
        key = (entry.call, entry.func, entry.where, entry.reason, entry.pool)
        sums = (
            entry.items, entry.seconds, entry.envelopes, entry.retries, entry.failures, entry.calls, entry.busy,
            entry.home,
        )  # fmt: skip
        with self._lock:
            known = self._rows.get(key)
            self._rows[key] = tuple(map(operator.add, known, sums)) if known else sums

    def rows(self) -> list[CallReportEntry]:
        """Sums in the order of their first calls; those of the cluster come before local ones."""
        with self._lock:
            rows = [
                replace(CallReportEntry(*key, *sums), pool=pool)  # type: ignore[arg-type]
                for (*key, pool), sums in self._rows.items()
            ]
        called = {(row.reason, row.pool) for row in rows if row.calls}
        rows = [row for row in rows if row.calls or (row.reason, row.pool) not in called]
        return sorted(rows, key=lambda row: row.where == "local")

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()

    def as_json(self) -> str:
        """``{"calls": [one object for each row]}``, indented."""
        return json.dumps({"calls": [asdict(row) for row in self.rows()]}, indent=2) + "\n"

    def render(self, file: TextIO) -> None:
        """Write the report for people to *file*: with colours on a terminal, as plain text elsewhere."""
        from rich.console import Console

        is_terminal = file.isatty()
        console = Console(
            file=file,
            force_terminal=is_terminal,  # FORCE_COLOR is meant for terminals, not for a report in a file.
            width=None if is_terminal else PIPE_WIDTH,
            markup=False,
            emoji=False,
            highlight=False,
        )
        with console.capture() as captured:
            for line in _lines(self.rows()):
                console.print(line)
        text = re.sub(r" +$", "", captured.get(), flags=re.MULTILINE)  # Rich pads what it wraps.
        encoding = file.encoding or "utf-8"
        file.write(text.encode(encoding, "backslashreplace").decode(encoding))  # A name may be beyond an ASCII pipe.


def calls() -> CallReport:
    """The report of this process."""
    return part(CallReport)


def _lines(rows: list[CallReportEntry]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if not rows:
        yield "Call report: no call went through the old interfaces."
        return
    yield Text(f"Call report: {summary(rows)}", style="bold")
    yield Text("\n" + _columns(HEADINGS), style="dim")
    notes: dict[str, int] = {}
    for where, (title, style) in SECTIONS.items():
        chosen = [row for row in rows if row.where == where]
        if chosen:
            yield Text(title, style=f"bold {style}")
        for row in chosen:
            note = notes.setdefault(row.reason, len(notes) + 1)
            yield Text(f"  {row.title}\n  {row.func} [{note}]\n{_columns(_figures(row))}", overflow="fold")
            for sentence in row.details():
                yield Padding(Text(sentence, overflow="fold"), (0, 0, 0, 6))
    reasons = Table.grid(padding=(0, 1))
    for reason, note in notes.items():
        reasons.add_row(f"[{note}]", Text(reason, overflow="fold"))
    yield Text("\nreasons", style="dim")
    yield reasons


def summary(rows: Sequence[CallReportEntry]) -> str:
    """How many calls ran where."""
    count, local = sum(row.calls for row in rows), sum(row.calls for row in rows if row.where == "local")
    unit = "call" if count == 1 else "calls"
    return f"{count:,} {unit}, {count - local:,} in the cluster and {local:,} on this machine"


def _figures(row: CallReportEntry) -> tuple[str, ...]:
    sent = f"{row.envelopes:,}" if row.where == "cluster" else "-"
    return f"{row.calls:,}", f"{row.items:,}", f"{row.seconds:,.2f}", sent, f"{row.retries:,}", f"{row.failures:,}"


def _columns(texts: tuple[str, ...]) -> str:
    return "".join(text.rjust(width) for text, width in zip(texts, WIDTHS, strict=True))
