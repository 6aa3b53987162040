"""The last health report and the latest changes, in Redis and bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from graft.config import keys
from graft.tasks.health.verdicts import Change, HealthReport

REPORT: Final = keys.HEALTH
CHANGES: Final = "graft:health:changes"
CHANGES_LENGTH: Final = 500


def last(client: Any) -> HealthReport | None:
    """The report of the last check."""
    text = client.get(REPORT)
    return HealthReport.of(json.loads(text)) if text else None


def keep(report: HealthReport, changes: Sequence[Change], client: Any) -> None:
    """Make *report* the last one, and note *changes*."""
    with client.pipeline() as pipe:
        pipe.set(REPORT, json.dumps(report.as_dict()))
        for change in changes:
            pipe.lpush(CHANGES, json.dumps({"at": report.at, **asdict(change)}))
        pipe.ltrim(CHANGES, 0, CHANGES_LENGTH - 1)
        pipe.execute()


def past_changes(client: Any, limit: int = CHANGES_LENGTH) -> list[tuple[float, Change]]:
    """The latest changes and their times, the latest first."""
    entries = (json.loads(text) for text in client.lrange(CHANGES, 0, limit - 1))
    return [(entry.pop("at"), Change(**entry)) for entry in entries]
