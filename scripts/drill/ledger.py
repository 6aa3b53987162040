"""The record of what was sent and what ran: a file, so that no fault of Redis can lose the evidence.

One line for each event, appended in one write: kind, label, process id, seconds of the machine's monotonic clock (the
clock of day is one of the things that the drill breaks). ``sent`` is written when the broker took
a message, ``unsure`` when sending raised: it may run, and is counted apart.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = ("sent", "unsure", "start", "end", "died", "tick", "answered", "told")


def note(kind: str, label: str) -> None:
    """Write one event to the file that DRILL_LEDGER names."""
    line = f"{kind} {label} {os.getpid()} {time.monotonic():.6f}\n".encode()
    file = os.open(os.environ["DRILL_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


@dataclass(frozen=True)
class Count:
    """The ledger's sums. Labels that begin with a dot are the drill's own and are left out."""

    sent: frozenset[str] = frozenset()
    unsure: frozenset[str] = frozenset()
    starts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    started_at: tuple[float, ...] = ()
    died: int = 0
    first_at: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (kind, label) -> when it was first so.
    ticks: tuple[float, ...] = ()
    answered: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()  # Whose caller heard of a failure.

    @property
    def lost(self) -> int:
        """Messages that the broker took and that never ran to their end, without a word to their caller."""
        return len(self.sent - self.ends.keys() - self.told)

    @property
    def doubled(self) -> int:
        """Runs beyond the first, of everything that ran."""
        return sum(count - 1 for label, count in self.starts.items() if not label.startswith("."))

    def next_start(self, after: float) -> float | None:
        """Seconds from the moment *after* to the first run that began behind it."""
        later = [at - after for at in self.started_at if at >= after]
        return min(later, default=None)


def read(ledger: Path) -> Count:
    """Add up *ledger*; a last line that is still being written does not count yet."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    started: list[float] = []
    ticks: list[float] = []
    first: dict[tuple[str, str], float] = {}
    text = ledger.read_text(errors="replace") if ledger.exists() else ""
    for line in text.splitlines():
        parts = line.split(" ")
        if len(parts) == 4 and parts[0] in kinds:
            kinds[parts[0]].append(parts[1])
            first.setdefault((parts[0], parts[1]), float(parts[3]))
            if parts[0] in ("start", "tick"):
                (started if parts[0] == "start" else ticks).append(float(parts[3]))
    ours = [label for label in kinds["sent"] if not label.startswith(".")]
    return Count(
        frozenset(ours),
        frozenset(kinds["unsure"]),
        Counter(kinds["start"]),
        Counter(kinds["end"]),
        tuple(started),
        len(kinds["died"]),
        first,
        tuple(ticks),
        frozenset(kinds["answered"]),
        frozenset(kinds["told"]),
    )
