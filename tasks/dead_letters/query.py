"""Chooses dead letters by conditions, and groups those of the same cause. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from graft.tasks.dead_letters.store import DeadLetter


@dataclass(frozen=True)
class Choice:
    """The dead letters that meet every condition; without conditions, all. Times are seconds since the epoch."""

    ids: frozenset[str] = frozenset()
    reason: str | None = None
    function: str | None = None
    queue: str | None = None
    fingerprint: str | None = None
    error: str | None = None
    after: float | None = None
    before: float | None = None

    @property
    def is_everything(self) -> bool:
        return self == Choice()

    @property
    def names_failed(self) -> bool:
        """Whether letters of the reason ``failed`` are meant by name, so that they may be changed."""
        return self.reason == "failed" or bool(self.ids or self.fingerprint)

    def holds(self, letter: DeadLetter) -> bool:
        """Whether *letter* meets the conditions. ``function`` is a shell pattern, ``error`` a part of the text."""
        return (
            (not self.ids or letter.id in self.ids)
            and (self.reason is None or letter.reason == self.reason)
            and (self.function is None or fnmatchcase(letter.function, self.function))
            and (self.queue is None or letter.queue == self.queue)
            and (self.fingerprint is None or letter.fingerprint.startswith(self.fingerprint))
            and (self.error is None or self.error.casefold() in letter.error.casefold())
            and (self.after is None or letter.buried_at >= self.after)
            and (self.before is None or letter.buried_at < self.before)
        )


@dataclass(frozen=True)
class Cause:
    """Dead letters with one fingerprint. Times are seconds since the epoch."""

    fingerprint: str
    reason: str
    function: str
    error: str
    letters: int
    items: int
    first: float
    last: float


def causes(letters: Iterable[DeadLetter]) -> list[Cause]:
    """The causes of *letters*, the most frequent first, each with its latest error."""
    latest: dict[str, DeadLetter] = {}
    letter_counts, item_counts = Counter[str](), Counter[str]()
    first: dict[str, float] = {}
    for letter in letters:
        name, at = letter.fingerprint, letter.buried_at
        letter_counts[name] += 1
        item_counts[name] += letter.items
        first[name] = min(first.get(name, at), at)
        if name not in latest or at >= latest[name].buried_at:
            latest[name] = replace(letter, envelope="", traceback="") if letter.envelope else letter
    found = [
        Cause(
            name,
            one.reason,
            one.function,
            one.error,
            letter_counts[name],
            item_counts[name],
            first[name],
            one.buried_at,
        )
        for name, one in latest.items()
    ]
    return sorted(found, key=lambda cause: (-cause.letters, -cause.last))
