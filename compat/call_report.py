"""The call report: which old calls ran in the cluster, which stayed with the caller, and why. Nothing is silent.

``bridge`` records every call in :func:`calls`; ``python -m graft.compat`` prints it when the program has ended.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TextIO

from graft.config.deployment import part

if TYPE_CHECKING:
    from rich.console import RenderableType

PIPE_WIDTH: Final = 80  # Columns of a report that no terminal shows.
# Names and reasons are long, so each has lines of its own; the figures stay in columns below them.
HEADINGS: Final = ("calls", "items", "seconds", "envelopes", "retries", "failed")
WIDTHS: Final = (18, 13, 13, 12, 10, 9)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of an old interface. ``reason`` says why it ran where it did; ``seconds`` are the caller's wall time."""

    call: str
    func: str
    where: Literal["cluster", "caller"]
    reason: str
    items: int
    seconds: float
    envelopes: int
    retries: int
    failed: bool


@dataclass(frozen=True, slots=True)
class CallRow:
    """All calls that differ in their figures only, summed up."""

    call: str
    func: str
    where: Literal["cluster", "caller"]
    reason: str
    calls: int = 0
    items: int = 0
    seconds: float = 0.0
    envelopes: int = 0
    retries: int = 0
    failures: int = 0

    def plus(self, record: CallRecord) -> CallRow:
        return replace(
            self,
            calls=self.calls + 1,
            items=self.items + record.items,
            seconds=self.seconds + record.seconds,
            envelopes=self.envelopes + record.envelopes,
            retries=self.retries + record.retries,
            failures=self.failures + record.failed,
        )


class CallReport:
    """Sums of calls, by call, function, place and reason; threads may record at once."""

    def __init__(self) -> None:
        self.after_fork()
        self._rows: dict[tuple[str, str, str, str], CallRow] = {}

    def after_fork(self) -> None:
        """After a fork: the lock may be held by a thread that only the parent has."""
        self._lock = threading.Lock()

    def record(self, record: CallRecord) -> None:
        key = (record.call, record.func, record.where, record.reason)
        with self._lock:
            row = self._rows.get(key) or CallRow(record.call, record.func, record.where, record.reason)
            self._rows[key] = row.plus(record)

    def rows(self) -> list[CallRow]:
        """In order of first appearance, those of the cluster before those of the caller."""
        with self._lock:
            rows = list(self._rows.values())
        return sorted(rows, key=lambda row: row.where == "caller")

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


def _lines(rows: list[CallRow]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        yield "Call report: no call went through the old interfaces."
        return
    yield Text(f"Call report: {_sum(rows)}", style="bold")
    yield Text("\n" + _columns(HEADINGS), style="dim")
    notes: dict[str, int] = {}
    for where, style in (("cluster", "green"), ("caller", "yellow")):
        chosen = [row for row in rows if row.where == where]
        if chosen:
            yield Text(f"in the {where}", style=f"bold {style}")
        for row in chosen:
            note = notes.setdefault(row.reason, len(notes) + 1)
            yield Text(f"  {row.call}\n  {row.func} [{note}]\n{_columns(_figures(row))}", overflow="fold")
    reasons = Table.grid(padding=(0, 1))
    for reason, note in notes.items():
        reasons.add_row(f"[{note}]", Text(reason, overflow="fold"))
    yield Text("\nwhy there", style="dim")
    yield reasons


def _sum(rows: list[CallRow]) -> str:
    count, here = sum(row.calls for row in rows), sum(row.calls for row in rows if row.where == "caller")
    unit = "call" if count == 1 else "calls"
    return f"{count:,} {unit}, {count - here:,} in the cluster and {here:,} in the caller"


def _figures(row: CallRow) -> tuple[str, ...]:
    sent = f"{row.envelopes:,}" if row.where == "cluster" else "-"
    return f"{row.calls:,}", f"{row.items:,}", f"{row.seconds:,.2f}", sent, f"{row.retries:,}", f"{row.failures:,}"


def _columns(texts: tuple[str, ...]) -> str:
    return "".join(text.rjust(width) for text, width in zip(texts, WIDTHS, strict=True))
