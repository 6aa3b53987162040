"""The beat table: which periodic task runs how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graft.config.settings import Settings

if TYPE_CHECKING:
    from celery.schedules import schedule


def beat_schedule(config: Settings, queue: str) -> dict[str, dict[str, Any]]:
    """Beat's entries for *config*, which go to *queue*; ours are called as their tasks are.

    Periodic tasks keep no result. One that was not started within its period is dropped: an outage must not be followed
    by a pile of identical runs.
    """
    rows: list[tuple[str, str, float | schedule, float]] = [
        (task, task, every, max(every, 10.0))
        for task, every in (
            ("graft.maintenance.lift_waiting_messages", 10.0),
            ("graft.maintenance.finish_chords", 10.0),
            ("graft.maintenance.tidy", 300.0),
            ("graft.maintenance.prune_dead_letters", 3600.0),
            ("graft.health.check", config.health_every),
            ("graft.history.note", config.health_every),
            ("graft.leaks.check", config.leaks_every),
        )
    ]
    if config.poc_tasks:
        from celery.schedules import crontab

        rows += [
            ("cleanup-old-results", "cleanup_old_results", crontab(hour=2, minute=0), 3600.0),
            ("collect-metrics", "collect_metrics", 60.0, 60.0),
        ]
    return {
        name: {
            "task": task,
            "schedule": every,
            "options": {"queue": queue, "priority": 0, "expires": expires, "ignore_result": True},
        }
        for name, task, every, expires in rows
    }
