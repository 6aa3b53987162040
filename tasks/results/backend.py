"""Celery's result backend for our own tasks: the app's, where that is Redis, else one of our own beside it.

A project may keep its results in a database, or nowhere; batches, chords and calls are announced through Redis.
"""

from __future__ import annotations

from typing import Any

from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend

from graft.config.deployment import app, part, settings


def results_backend() -> Any:
    """The backend that holds the results of our own tasks."""
    found = app().backend
    # What is in another form than JSON would be unpickled unsigned.
    if isinstance(found, RedisBackend) and found.serializer == "json":
        return found
    if isinstance(found, DisabledBackend):
        # Celery 5.7 looks there for the group of a chord, whatever the backend of its parts (redis.py).
        found._restore_group = lambda group_id: None
    return part(_beside)


def _beside() -> RedisBackend:
    return RedisBackend(app=app(), url=settings().backend_url, serializer="json", accept=["json"])


class ResultsInRedis:
    """For a task class of ours."""

    @property
    def backend(self) -> Any:
        return results_backend()
