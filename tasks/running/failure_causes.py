"""Groups the failed items of one envelope by cause, so that each cause leaves one dead letter. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from graft.tasks.dead_letters.store import cause_of

MOST: Final = 10  # Causes told apart in one envelope; what is left joins the last.


def by_cause(errors: Mapping[int, BaseException]) -> list[list[int]]:
    """The indexes of *errors*, those of one cause together, in the order of their first items."""
    groups: dict[str, list[int]] = {}
    for index in sorted(errors):
        cause = cause_of(errors[index])
        if cause not in groups and len(groups) == MOST:
            cause = next(reversed(groups))
        groups.setdefault(cause, []).append(index)
    return list(groups.values())
