"""The room's periodic tasks. What they do is imported when they run: most workers never run them."""

from __future__ import annotations

from graft.config.own_task import own_task


@own_task("graft.maintenance.finish_chords", ignore_result=True)
def finish_chords() -> int:
    """Take the missing step of every chord on record that stands still; how many were ended or failed."""
    from graft.tasks.cleanup import chord_recovery

    return chord_recovery.finish_chords()


@own_task("graft.maintenance.tidy", ignore_result=True)
def tidy() -> dict[str, int]:
    """Remove what Celery and our workers leave behind; how many of each kind."""
    from graft.tasks.cleanup import redis_keys

    return redis_keys.tidy()


@own_task("graft.maintenance.prune_dead_letters", ignore_result=True)
def prune_dead_letters() -> int:
    """Remove dead letters, and ends of runs, that are older than the deployment keeps them; how many letters."""
    from graft.tasks.cleanup import redis_keys

    return redis_keys.prune_dead_letters()
