"""Ids of envelopes: shaped like UUIDs, and those of one process share a prefix.

One pattern subscription on that prefix then hears every answer to this process, however many envelopes it sends.
"""

from __future__ import annotations

import itertools
import os
from uuid import uuid4

_prefix = ""
_numbers = itertools.count(1)


def _renew() -> None:
    global _prefix, _numbers
    _prefix = str(uuid4())[:24]
    _numbers = itertools.count(1)


def prefix() -> str:
    """What every id made by this process begins with."""
    return _prefix


def new_id() -> str:
    """An id that no other call, process or machine makes."""
    return f"{_prefix}{next(_numbers):012x}"


def sibling_of(envelope_id: str) -> str:
    """A new id that begins like *envelope_id*, which another process has made."""
    return f"{envelope_id[:24]}f{uuid4().hex[:11]}"


_renew()
os.register_at_fork(after_in_child=_renew)
