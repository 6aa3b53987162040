"""The periodic check for leaks. What it does is imported when it runs: most workers never run it."""

from __future__ import annotations

from graft.config.own_task import own_task


@own_task("graft.leaks.check", ignore_result=True)
def check() -> int | None:
    """Judge every series, and keep what was found; how many findings, or None while another check runs."""
    from graft.tasks.leaks import examination

    return examination.check()
