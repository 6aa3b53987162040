"""The verdict: what a shadow run has shown of each callable, as lines for people, JSON, and an HTML page. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Final, Literal

from graft.compat import html_page
from graft.compat.shadow.plan import Kind, Plan
from graft.compat.shadow.record import Record

Word = Literal["differs", "cannot", "safe", "stays"]
FailOn = Literal["never", "differs", "cannot"]

WORDS: Final[dict[Word, str]] = {
    "differs": "differs here",
    "cannot": "cannot be compared because",
    "safe": "safe",
    "stays": "stays in this process",
}
FAILS: Final[dict[FailOn, frozenset[Word]]] = {
    "never": frozenset(),
    "differs": frozenset({"differs"}),
    "cannot": frozenset({"differs", "cannot"}),
}


@dataclass(frozen=True)
class Shown:
    """The smallest example of one kind of difference: the call's arguments, and both sides."""

    kind: Kind
    arguments: str
    number: int
    old: str
    cluster: str
    remark: str


@dataclass(frozen=True)
class CallableVerdict:
    """What is known of one callable. Times are milliseconds on average, the overhead that of a shadowed call."""

    callable: str
    verdict: Word
    reason: str
    calls: int
    shadowed: int
    compared: int
    differ: int
    dropped: int
    missed: int
    cannot: dict[str, int]
    canaries: int
    canary_errors: int
    taken_back: int
    back: str
    old_ms: float
    cluster_ms: float
    round_trip_ms: float
    overhead_ms: float
    examples: list[Shown] = field(default_factory=list)

    @classmethod
    def of(cls, record: Record) -> CallableVerdict:
        with record.lock:
            word, reason = _judged(record)
            return cls(
                callable=record.name, verdict=word, reason=reason, calls=record.calls, shadowed=record.shadowed,
                compared=record.compared, differ=record.differed, dropped=record.dropped, missed=record.missed,
                cannot=dict(record.cannot.most_common()), canaries=record.canaries,
                canary_errors=record.canary_errors, taken_back=record.taken_back, back=record.back,
                old_ms=_mean(record.old_seconds, record.compared),
                cluster_ms=_mean(record.new_seconds, record.compared),
                round_trip_ms=_mean(record.round_trips, record.compared),
                overhead_ms=_mean(record.overhead, record.shadowed),
                examples=[
                    Shown(kind, one.arguments, one.number, what.old, what.new, what.remark)
                    for kind, one in sorted(record.examples.items())
                    for what in (one.difference,)
                ],
            )  # fmt: skip

    @property
    def headline(self) -> str:
        return f"{WORDS[self.verdict]} {self.reason}" if self.verdict == "cannot" else WORDS[self.verdict]

    def details(self) -> Iterator[str]:
        """What is known, in sentences."""
        if self.verdict in ("stays", "safe") and self.reason:
            yield self.reason
        if self.shadowed or self.missed:
            rest = [
                f"{count:,} {what}"
                for count, what in (
                    (sum(self.cannot.values()), "could not be compared"),
                    (self.dropped, "dropped, because too many were outstanding"),
                    (self.missed, "chosen while Redis did not answer, and answered the old way"),
                )
                if count
            ]
            counted = f"{self.shadowed:,} of {self.calls:,} calls shadowed, {self.compared:,} compared"
            yield "; ".join([f"{counted}, {self.differ:,} differ", *rest])
        for reason, count in self.cannot.items():
            yield f"{count:,} not compared: {reason}"
        if self.compared:
            yield (
                f"old way {self.old_ms:.3g} ms, cluster {self.cluster_ms:.3g} ms (answered after "
                f"{self.round_trip_ms:.3g} ms), overhead for the caller {self.overhead_ms:.2g} ms"
            )
        if self.canaries:
            back = f", {self.taken_back:,} taken back by the old way" if self.taken_back else ""
            yield (
                f"{self.canaries:,} of {self.calls:,} calls given to the cluster as canary, "
                f"{self.canary_errors:,} of them failed{back}"
            )
        if self.back:
            yield f"no canary is sent: {self.back}"


@dataclass(frozen=True)
class Verdict:
    """The verdict of one program: the worst of its callables'."""

    program: str
    verdict: Word
    shadow: float
    canary: float
    callables: Sequence[CallableVerdict]

    @classmethod
    def of(cls, plan: Plan, records: Iterable[Record]) -> Verdict:
        found = [CallableVerdict.of(record) for record in records]
        order: list[Word] = list(WORDS)
        found.sort(key=lambda one: order.index(one.verdict))
        words = [one.verdict for one in found if one.verdict != "stays"]
        return cls(plan.program, words[0] if words else "cannot", plan.shadow, plan.canary, found)

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """The verdict that :meth:`as_json` wrote."""
        found = json.loads(text)
        callables = [
            CallableVerdict(**{**one, "examples": [Shown(**each) for each in one["examples"]]})
            for one in found["callables"]
        ]
        return cls(found["program"], found["verdict"], found["shadow"], found["canary"], callables)

    def is_failing(self, fail_on: FailOn) -> bool:
        return self.verdict in FAILS[fail_on]

    @property
    def summary(self) -> str:
        """One line."""
        if not self.callables:
            return "cannot be compared because no call went through the old interfaces"
        counts = Counter(one.verdict for one in self.callables)
        names: dict[Word, str] = {**WORDS, "cannot": "cannot be compared"}
        told = ", ".join(f"{counts[word]:,} {names[word]}" for word in WORDS if counts[word])
        return f"{names[self.verdict]} ({told})"

    def as_json(self) -> str:
        return json.dumps({"format": 1, **asdict(self), "summary": self.summary}, indent=1) + "\n"

    def lines(self) -> Iterator[str]:
        """The verdict for people."""
        yield f"Shadow verdict: {self.summary}"
        for one in self.callables:
            yield f"  {one.callable}: {one.headline}"
            for sentence in one.details():
                yield f"      {sentence}"
            for example in one.examples:
                remark = f", {example.remark}" if example.remark else ""
                yield f"      {example.kind}{remark}; the smallest example is call {example.number}:"
                yield f"        ({example.arguments})"
                yield f"        old way: {example.old}"
                yield f"        cluster: {example.cluster}"

    def text(self) -> str:
        return "\n".join([*self.lines(), ""])

    def page(self) -> str:
        """The verdict as an HTML page that needs no other file."""
        parts = [
            html_page.head(f"Shadow verdict: {self.program}"),
            f"<h1>{escape(self.program)}: <span class={self.verdict}>{escape(self.summary)}</span></h1>",
            f"<p>shadow {self.shadow:g}, canary {self.canary:g}",
        ]
        for one in self.callables:
            parts.append(f"<h2>{escape(one.callable)}: <span class={one.verdict}>{escape(one.headline)}</span></h2>")
            parts += [f"<p>{escape(sentence)}" for sentence in one.details()]
            if one.examples:
                parts.append("<table><tr><th>difference<th>arguments<th>old way<th>cluster")
                parts += [_row(example) for example in one.examples]
                parts.append("</table>")
        return "\n".join(parts) + "\n"


def _row(example: Shown) -> str:
    cells: tuple[Any, ...] = (example.arguments, example.old, example.cluster)
    first = f"{example.kind}<br>{escape(example.remark)}" if example.remark else example.kind
    return f"<tr><td>{first}" + "".join(f"<td><code>{escape(cell)}</code>" for cell in cells)


def _judged(record: Record) -> tuple[Word, str]:
    """The verdict and its reason, under the record's lock."""
    if record.differed:
        return "differs", ""
    if record.stays:
        return "stays", f"in the cluster, too: {record.stays}"
    if record.left_out:
        return "cannot", record.left_out
    if record.cannot:
        (reason, count), *_ = record.cannot.most_common(1)
        return "cannot", f"{reason} ({count:,} of {record.shadowed:,} calls)"
    if record.compared:
        return "safe", ""
    if record.dropped:
        return "cannot", "too many calls were outstanding"
    if record.missed:
        return "cannot", "Redis did not answer"
    return "cannot", f"none of its {record.calls:,} calls was chosen"


def _mean(total: float, count: int) -> float:
    return 1000 * total / count if count else 0.0
