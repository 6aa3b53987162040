"""Periodic tasks: what keeps the deployment tidy."""

from __future__ import annotations

from graft.config.own_task import own_task
from graft.tasks.dead_letters import store as dead_letters


@own_task("graft.maintenance.prune_dead_letters", ignore_result=True)
def prune_dead_letters() -> int:
    """Remove dead letters that are older than the deployment keeps them; how many."""
    return dead_letters.prune()
