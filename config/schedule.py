"""The beat table: what runs how often."""

from __future__ import annotations

from typing import Any, Final

# Periodic tasks keep no result, and one that was not started within its period is dropped: an outage must not be
# followed by a pile of identical runs.
BEAT_SCHEDULE: Final[dict[str, dict[str, Any]]] = {
    name: {
        "task": f"graft.maintenance.{task}",
        "schedule": every,
        "options": {"queue": "maintenance", "priority": 0, "expires": every, "ignore_result": True},
    }
    for name, task, every in (
        ("lift-waiting-messages", "lift_waiting_messages", 10.0),
        ("prune-dead-letters", "prune_dead_letters", 3600.0),
    )
}
