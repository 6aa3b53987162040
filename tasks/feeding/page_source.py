"""The items of a durable batch that have yet to be sent, read page by page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from graft.tasks.durable.pages import PageReader

Runs = list[tuple[int, int]]


class PageSource:
    """The items at the positions in *todo*, ascending runs, as a :class:`~graft.tasks.sending.sources.Source`.

    ``missing`` gathers runs of items that are in no page: they could not travel, or their page is gone.
    """

    eager = True
    ahead: int | None = None
    error: BaseException | None = None

    def __init__(self, pages: PageReader, todo: Runs) -> None:
        self._pages = pages
        self._todo = deque(todo)
        self._left = sum(last + 1 - first for first, last in todo)
        self._taken: Sequence[int] = ()
        self.encoded = False
        self.missing: Runs = []

    def take(self, size: int) -> Sequence[Any]:
        """At most *size* items, all of one kind. Blocks for a round trip or two where a page ends."""
        items: list[Any] = []
        taken: list[int] = []
        while self._todo and len(items) < size:
            first, last = self._todo[0]
            page, behind = self._pages.at(first)
            if items and page.is_plain is self.encoded and page.positions:
                break  # The next page is of the other kind.
            at, stop = page.index(first), page.index(min(last, first + size - len(items) - 1) + 1)
            found = page.positions[at:stop]
            if not found or found[0] != first:  # Nothing there, up to the next item of the page.
                gap = found[0] if found else min(last + 1, behind)
                if not found and at < len(page.positions):
                    gap = min(gap, page.positions[at])
                self.missing.append((first, gap - 1))
                self._advance(gap)
                continue
            self.encoded = not page.is_plain
            count = _run_length(found)
            items += page.items[at : at + count]
            taken += found[:count]
            self._advance(first + count)
        is_run = bool(taken) and taken[-1] - taken[0] == len(taken) - 1
        self._taken = range(taken[0], taken[-1] + 1) if is_run else taken
        return items

    def _advance(self, position: int) -> None:
        first, last = self._todo.popleft()
        self._left -= position - first
        if position <= last:
            self._todo.appendleft((position, last))

    def positions(self, taken: int, size: int) -> Sequence[int]:
        return self._taken

    def rest(self) -> Runs:
        """The runs of items that have not been taken."""
        return list(self._todo)

    def close(self) -> None:
        self._todo.clear()
        self._left = 0

    @property
    def remaining(self) -> int | None:
        return self._left

    @property
    def ready(self) -> int:
        return self._left


def _run_length(positions: Sequence[int]) -> int:
    """How many of *positions* follow each other from the first one on."""
    if isinstance(positions, range):
        return len(positions)
    return next((at for at, (one, other) in enumerate(pairwise(positions), 1) if other != one + 1), len(positions))
