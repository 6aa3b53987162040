"""The last report and the changes, in Redis and bounded; and the lock that lets one check run at a time."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from graft.config import lua
from graft.tasks.health.verdicts import Change, Report

REPORT: Final = "graft:health"
CHANGES: Final = "graft:health:changes"
LOCK: Final = "graft:health:lock"
COUNTS: Final = "graft:health:counts"
LOCK_MS: Final = 120_000  # A look that was killed gives way after two minutes.
CHANGES_LENGTH: Final = 500

UNLOCK: Final = lua.load(__file__, "unlock")


@contextmanager
def alone(client: Any, name: str = LOCK, counts: str = COUNTS) -> Iterator[bool]:
    """Whether this look may go on: True for one process at a time. The others are counted."""
    token = secrets.token_hex(8)
    if not client.set(name, token, nx=True, px=LOCK_MS):
        client.hincrby(counts, "overlaps", 1)
        yield False
        return
    try:
        client.hincrby(counts, "runs", 1)
        yield True
    finally:
        UNLOCK([name], [token], client)


def totals(client: Any, counts: str = COUNTS) -> tuple[int, int]:
    """Looks that ran, and looks that were skipped because another still ran."""
    runs, overlaps = client.hmget(counts, "runs", "overlaps")
    return int(runs or 0), int(overlaps or 0)


def last(client: Any) -> Report | None:
    """The report of the last look."""
    text = client.get(REPORT)
    return Report.of(json.loads(text)) if text else None


def keep(report: Report, changes: Sequence[Change], client: Any) -> None:
    """Make *report* the last one, and note *changes*."""
    with client.pipeline() as pipe:
        pipe.set(REPORT, json.dumps(report.as_dict()))
        for change in changes:
            pipe.lpush(CHANGES, json.dumps({"at": report.at, **asdict(change)}))
        pipe.ltrim(CHANGES, 0, CHANGES_LENGTH - 1)
        pipe.execute()


def past_changes(client: Any, limit: int = CHANGES_LENGTH) -> list[tuple[float, Change]]:
    """What got worse or better, and when, the latest first."""
    entries = (json.loads(text) for text in client.lrange(CHANGES, 0, limit - 1))
    return [(entry.pop("at"), Change(**entry)) for entry in entries]
