"""What the leak checks found last, as the health checks want it."""

from __future__ import annotations

from typing import Any

from graft.tasks.health.measurements import Growth
from graft.tasks.leaks import findings
from graft.tasks.leaks.trend import SURE


def growths(client: Any) -> tuple[Growth, ...]:
    """Everything that leaks; and suspects, once they have been watched for long enough to be no young process."""
    return tuple(
        Growth(f"{found.subject} {found.measure}", found.verdict, found.detail, found.remedy)
        for found in findings.read(client)
        if found.verdict == "leaking" or found.samples >= SURE or found.measure == "loans"
    )
