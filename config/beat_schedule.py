"""The beat table: what runs how often."""

from __future__ import annotations

from typing import Any, Final

from celery.schedules import crontab

from graft.config.settings import Settings

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
        ("tidy", "tidy", 300.0),
        ("finish-chords", "finish_chords", 10.0),
        ("prune-dead-letters", "prune_dead_letters", 3600.0),
    )
} | {
    # Of the earlier proof of concept, under the names it had.
    name: {
        "task": task,
        "schedule": schedule,
        "options": {"queue": "maintenance", "expires": expires, "ignore_result": True},
    }
    for name, task, schedule, expires in (
        ("cleanup-old-results", "cleanup_old_results", crontab(hour=2, minute=0), 3600.0),
        ("collect-metrics", "collect_metrics", 60.0, 60.0),
    )
}


def checks(config: Settings) -> dict[str, dict[str, Any]]:
    """The periodic checks, as often as *config* says."""
    return {
        name: {
            "task": task,
            "schedule": every,
            "options": {"queue": "maintenance", "priority": 0, "expires": max(every, 10.0), "ignore_result": True},
        }
        for name, task, every in (
            ("check-health", "graft.health.check", config.health_every),
            ("check-leaks", "graft.leaks.check", config.leaks_every),
            ("note-history", "graft.history.note", config.health_every),
        )
    }
