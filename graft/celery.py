"""Hands our own app to the command line: ``celery -A graft worker|beat|flower|inspect|control|events``.

A function that a worker imports may live in a module that itself imports the old worker-pool module. So the old names
lead to the facades here as well; inside a task these run everything in place.
"""

from __future__ import annotations

import sys

from graft.compat import redirect
from graft.config.deployment import settings
from graft.config.settings import SettingsError

try:
    # Before there is an app, whose settings are those of its configuration: Celery configures it when it is needed.
    redirect.install(*filter(None, settings().replace.split(",")))
    from graft.config.celery_app import app
except SettingsError as error:
    if "celery.bin.celery" not in sys.modules:
        raise
    raise SystemExit(f"these settings cannot work: {error}") from None  # Celery's command line would show a traceback.

app.set_default()  # shared_task of the modules that a worker loads belongs to this app.

if "celery.bin.celery" in sys.modules:  # The command line asks.
    from graft.scripts import command_table

    command_table.prepare_flower()

__all__ = ["app"]
