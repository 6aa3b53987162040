"""What is known of one callable: counts, seconds, the smallest example of each kind of difference."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from graft.compat.shadow.compare import Difference
from graft.compat.shadow.plan import Kind

ENOUGH: Final = 10  # Calls from which on a share says something.
REASONS: Final = 20  # Reasons that are told apart.


@dataclass(frozen=True, slots=True)
class Example:
    """A call whose runs differ; ``size`` is that of its arguments' pickle in bytes."""

    difference: Difference
    arguments: str
    number: int
    size: int


class Record:
    """The calls of one callable. All figures are sums, and public to read.

    Attributes:
        calls: all calls, those that were not chosen included.
        compared: shadowed calls whose runs were both seen.
        dropped: shadowed calls that were not compared because too many were outstanding.
        missed: calls that were chosen while Redis did not answer, and were answered the old way.
        overhead: seconds that the callers of shadowed calls have waited for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.calls = self.shadowed = self.compared = self.differed = self.dropped = self.missed = 0
        self.canaries = self.canary_errors = self.taken_back = 0
        self.old_calls = self.old_errors = 0
        self.old_seconds = self.new_seconds = self.round_trips = self.overhead = self.slowest = 0.0
        self.stays = ""  # Why it stays in this process, in the cluster too.
        self.left_out = ""  # Why it is not chosen.
        self.back = ""  # Why it went back to the old way.
        self.cannot: Counter[str] = Counter()
        self.examples: dict[Kind, Example] = {}
        self._window()

    def _window(self) -> None:
        """Count shares anew: for the way back, what was before does not count."""
        self._compared = self._differed = self._canaries = self._canary_errors = self._old = self._old_errors = 0

    def numbered(self, count: int = 1) -> int:
        """The number of the next call, where *count* begin together that of the first."""
        with self.lock:
            self.calls += count
            return self.calls - count

    def note_old(self, seconds: float, *, failed: bool) -> None:
        """The old way has answered a call that is shadowed."""
        with self.lock:
            self.old_calls += 1
            self.old_errors += failed
            self._old += 1
            self._old_errors += failed
            self.slowest = max(self.slowest, seconds)

    def note_missed(self) -> None:
        with self.lock:
            self.missed += 1

    def note_overhead(self, seconds: float) -> None:
        with self.lock:
            self.overhead += seconds

    def note_dropped(self) -> None:
        with self.lock:
            self.shadowed += 1
            self.dropped += 1

    def note_cannot(self, reason: str) -> None:
        """A shadowed call cannot be compared."""
        with self.lock:
            self.shadowed += 1
            if reason not in self.cannot and len(self.cannot) >= REASONS:
                reason = "other reasons"
            self.cannot[reason] += 1

    def note_compared(
        self, found: Iterable[Difference], example: Example | None, old: float, new: float, trip: float
    ) -> None:
        """Both runs of a call were seen; *example* holds the first of the differences that were *found*."""
        with self.lock:
            self.shadowed += 1
            self.compared += 1
            self._compared += 1
            self.old_seconds += old
            self.new_seconds += new
            self.round_trips += trip
            if example is None:
                return
            self.differed += 1
            self._differed += 1
            for difference in found:
                known = self.examples.get(difference.kind)
                if known is None or (example.size, example.number) < (known.size, known.number):
                    self.examples[difference.kind] = Example(
                        difference, example.arguments, example.number, example.size
                    )

    def note_canary(self, *, failed: bool, taken_back: bool = False) -> None:
        """The cluster was to answer a call; *taken_back*: it did not, and the old way did."""
        with self.lock:
            self.canaries += 1
            self.canary_errors += failed
            self._canaries += 1
            self._canary_errors += failed
            self.taken_back += taken_back

    def beyond(self, limit: float) -> str:
        """Why the callable is to go back to the old way, if its share of differences or errors is above *limit*."""
        with self.lock:
            if self._compared >= ENOUGH and self._differed > limit * self._compared:
                return f"{self._differed} of {self._compared} compared calls differ, the limit is {limit:.3g}"
            if self._canaries >= ENOUGH:
                usual = self._old_errors / self._old if self._old else 0.0
                if self._canary_errors / self._canaries - usual > limit:
                    return (
                        f"{self._canary_errors} of {self._canaries} calls failed in the cluster, {usual:.0%} of those "
                        f"of the old way; the limit is {limit:.3g} more"
                    )
        return ""

    def go_back(self, why: str) -> None:
        """Answer the old way from now on; empty: no longer."""
        with self.lock:
            if self.back and not why:
                self._window()
            self.back = why
