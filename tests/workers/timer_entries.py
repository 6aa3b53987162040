"""A worker that imports this says how many entries its timer holds. Not a test."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command


@inspect_command()
def timer_entries(state: Any) -> int:
    """Entries of the worker's timer, cancelled ones too."""
    return len(state.consumer.timer)
