"""A pytest plugin: hardens the Celery apps that another project's tests make.

A process has one hardened app, and tests make many: each takes the place of the one before it, unless that one's worker
runs in this process. Then the new app sends hardened, and the process stays the worker's.
``GRAFT_ECOSYSTEM_APPS`` names the file that the plugin writes how many apps there were to.
"""

from __future__ import annotations

import json
import os
from functools import wraps
from pathlib import Path
from typing import Any

from celery.bootsteps import TERMINATE
from celery.worker import WorkController

from graft.config import harden
from graft.config.deployment import current
from graft.scripts.harden_command import when_an_app_is_made

made: list[Any] = []
workers: list[Any] = []


@when_an_app_is_made
def _harden(app: Any) -> None:
    owners = [worker.app for worker in workers if worker.blueprint.state != TERMINATE]
    _leave(keep_parts=bool(owners))
    made.append(harden.harden(app))
    if owners:
        _belong_to(owners[-1], keep_parts=True)


def _leave(keep_parts: bool) -> None:
    """Have the process belong to no app, so that it can be given to another."""
    if keep_parts:
        current._app = None
    else:
        current.forget()


def _belong_to(app: Any, keep_parts: bool = False) -> None:
    _leave(keep_parts)
    current.adopt(app, lambda: harden.settings_of(app))


def _adopt_the_app_of_each_worker() -> None:
    init = WorkController.__init__

    @wraps(init)
    def adopt_and_init(self: Any, app: Any = None, *args: Any, **kwargs: Any) -> None:
        owner = app or self.app
        if harden.is_active(owner):
            if not current.has(owner):
                _belong_to(owner)
            workers.append(self)
        init(self, app, *args, **kwargs)

    WorkController.__init__ = adopt_and_init


_adopt_the_app_of_each_worker()


def pytest_sessionfinish() -> None:
    counted = {"made": len(made), "on_redis": sum(app.configured and harden.is_active(app) for app in made)}
    Path(os.environ["GRAFT_ECOSYSTEM_APPS"]).write_text(json.dumps(counted))
