"""The beat table: which periodic task runs how often."""

from __future__ import annotations

from typing import Any

from celery.schedules import crontab, schedule

from graft.config.settings import Settings


def beat_schedule(config: Settings) -> dict[str, dict[str, Any]]:
    """Beat's entries for *config*.

    Periodic tasks keep no result. One that was not started within its period is dropped: an outage must not be followed
    by a pile of identical runs.
    """
    rows: list[tuple[str, str, float | schedule, float]] = [
        (name, f"graft.{task}", every, max(every, 10.0))
        for name, task, every in (
            ("lift-waiting-messages", "maintenance.lift_waiting_messages", 10.0),
            ("finish-chords", "maintenance.finish_chords", 10.0),
            ("tidy", "maintenance.tidy", 300.0),
            ("prune-dead-letters", "maintenance.prune_dead_letters", 3600.0),
            ("check-health", "health.check", config.health_every),
            ("note-history", "history.note", config.health_every),
            ("check-leaks", "leaks.check", config.leaks_every),
        )
    ]
    if config.poc_tasks:
        rows += [
            ("cleanup-old-results", "cleanup_old_results", crontab(hour=2, minute=0), 3600.0),
            ("collect-metrics", "collect_metrics", 60.0, 60.0),
        ]
    return {
        name: {
            "task": task,
            "schedule": every,
            "options": {"queue": "maintenance", "priority": 0, "expires": expires, "ignore_result": True},
        }
        for name, task, every, expires in rows
    }
