"""Lets one process at a time run a periodic check, and counts the runs that were skipped for that."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from graft.config import lua

LOCK_MS: Final = 120_000  # The lock of a run that was killed expires after two minutes.

UNLOCK: Final = lua.load(__file__, "unlock")


@contextmanager
def exclusive(check: str, client: Any) -> Iterator[bool]:
    """Whether this run of *check* (the prefix of its keys) may go on: not while another runs. Counts both kinds."""
    token = secrets.token_hex(8)
    if not client.set(f"{check}:lock", token, nx=True, px=LOCK_MS):
        client.hincrby(f"{check}:counts", "overlaps", 1)
        yield False
        return
    try:
        client.hincrby(f"{check}:counts", "runs", 1)
        yield True
    finally:
        UNLOCK([f"{check}:lock"], [token], client)


def totals(check: str, client: Any) -> tuple[int, int]:
    """The runs of *check* so far: those that went on, and those that were skipped."""
    runs, overlaps = client.hmget(f"{check}:counts", "runs", "overlaps")
    return int(runs or 0), int(overlaps or 0)
