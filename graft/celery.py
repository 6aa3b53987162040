"""Hands the app to the command line: ``celery -A graft worker|beat|flower|inspect|control|events``."""

from __future__ import annotations

from graft.workers.app import app

__all__ = ["app"]
