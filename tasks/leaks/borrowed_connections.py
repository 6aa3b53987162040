"""Connections that this process has borrowed from a pool and not given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

Source = Callable[[], Iterable[tuple[str, float]]]
"""The connections of one pool that are lent now: who holds each, since how many seconds."""

_sources: Final[list[Source]] = []


def add_source(source: Source) -> None:
    _sources.append(source)


def held(longer_than: float) -> list[tuple[str, float]]:
    """Who has held a connection for more than *longer_than* seconds, the longest first."""
    found = [(who, seconds) for source in _sources for who, seconds in source() if seconds > longer_than]
    return sorted(found, key=lambda one: -one[1])
