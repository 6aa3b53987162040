"""Counts the tasks that run in this process, from Celery's signals. Items of envelopes are counted by their runs."""

from __future__ import annotations

from typing import Any, Final

from celery import signals

from graft.tasks.monitoring.run_counts import run_counts

ENVELOPES: Final = ("graft.batch", "graft.reduce")


def _name(sender: Any) -> str:
    return str(getattr(sender, "name", ""))


def _count_plain(sender: Any, *names: str) -> None:
    if not _name(sender).startswith("graft."):
        run_counts().note_plain(*names)


@signals.task_prerun.connect
def _note_run(sender: Any = None, **_: Any) -> None:
    if _name(sender) not in ENVELOPES:
        run_counts().note(_name(sender))


@signals.task_success.connect
def _note_success(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items")


@signals.task_failure.connect
def _note_failure(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items", "errors")


@signals.task_retry.connect
def _note_retry(sender: Any = None, **_: Any) -> None:
    _count_plain(sender, "items", "errors", "retries")
