"""Connections that somebody has borrowed in this process and not given back: their pools say so when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

# Each gives (who holds it, since how many seconds) for everything that is lent now.
_sources: Final[list[Callable[[], Iterable[tuple[str, float]]]]] = []


def watch(source: Callable[[], Iterable[tuple[str, float]]]) -> None:
    """Ask *source* from now on."""
    _sources.append(source)


def held(longer_than: float) -> list[tuple[str, float]]:
    """Who has held a connection for longer than so many seconds, the longest first."""
    found = [(who, seconds) for source in _sources for who, seconds in source() if seconds > longer_than]
    return sorted(found, key=lambda loan: -loan[1])
