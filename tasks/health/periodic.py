"""The room's periodic tasks. What they do is imported when they run: most workers never run them."""

from __future__ import annotations

from graft.config.own_task import own_task


@own_task("graft.health.check", ignore_result=True)
def check() -> str | None:
    """Examine the deployment, keep the report and publish what changed; the state, or None while another check runs."""
    from graft.tasks.health import examination

    return examination.check()


@own_task("graft.history.note", ignore_result=True)
def note() -> None:
    """Add a snapshot to the history of the last day."""
    from graft.tasks.health import history

    history.note()
