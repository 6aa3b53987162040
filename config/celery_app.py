"""Our own app, for clients and workers alike: the app of a process that has adopted no other."""

from __future__ import annotations

from celery import Celery
from celery._state import _get_active_apps

from graft.config.celeryconfig import options
from graft.config.deployment import current, settings
from graft.config.harden import harden

# Made at the first call, perhaps in the middle of somebody's program: an app of theirs stays the current one.
_is_alone = all(other.main == "default" for other in _get_active_apps())
app = Celery("graft", set_as_current=_is_alone)
app.config_from_object(options(settings()))
if not current.is_adopted:
    harden(app)
