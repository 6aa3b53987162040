"""Ids of envelopes: shaped like UUIDs, and those of one process share a prefix.

One pattern subscription on that prefix then receives every result for this process, however many envelopes it sends.
"""

from __future__ import annotations

import itertools
from uuid import uuid4

from graft.config.deployment import part


class _Ids:
    """The ids of one process."""

    def __init__(self) -> None:
        self.prefix = str(uuid4())[:24]
        self.numbers = itertools.count(1)


def prefix() -> str:
    """The beginning of every id made by this process."""
    return part(_Ids).prefix


def new_id() -> str:
    """An id that no other call, process or machine makes."""
    ids = part(_Ids)
    return f"{ids.prefix}{next(ids.numbers):012x}"


def sibling_of(envelope_id: str) -> str:
    """A new id that begins like *envelope_id*, which another process has made."""
    return f"{envelope_id[:24]}f{uuid4().hex[:11]}"
