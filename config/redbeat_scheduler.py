"""RedBeat's scheduler: only the one that holds the lock writes the schedule, and writes it again if it is gone.

RedBeat (2.4) writes its schedule before it asks for the lock: one that stands by, with an older or newer schedule,
stopped the leader's entries. And it writes it once: after a FLUSHDB nothing was sent until it was started again.

Its class is mended in place: by whichever name ``-S`` asks for it, it is this one.
"""

from __future__ import annotations

import json
import logging
from importlib import import_module
from typing import Any, Final

from celery.signals import beat_init
from redis.exceptions import LockError

logger = logging.getLogger(__name__)

FIELDS: Final = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")  # Of a stored entry.

redbeat: Any = import_module("redbeat.schedulers")  # It has no types.
_setup_schedule, _tick = redbeat.RedBeatScheduler.setup_schedule, redbeat.RedBeatScheduler.tick


def install() -> None:
    """Mend RedBeat in this process, which is a Beat."""
    redbeat.RedBeatScheduler.setup_schedule, redbeat.RedBeatScheduler.tick = setup_schedule, tick
    # RedBeat's own receiver fails where another scheduler runs, with a traceback in Beat's log.
    beat_init.disconnect(redbeat.acquire_distributed_beat_lock)
    beat_init.connect(_lead)


def setup_schedule(self: Any) -> None:
    """Write the schedule, if this one leads; one that stands by says where its own differs."""
    if self.lock is None and self.app.redbeat_conf.lock_key:
        _warn_of_differences(self)
    else:
        _setup_schedule(self)


def tick(self: Any, *args: Any, **kwargs: Any) -> float:
    """Send what is due; the schedule, and the lock, are there before and after."""
    conf = self.app.redbeat_conf
    try:
        if conf.schedule and not redbeat.get_redis(self.app).exists(conf.statics_key):
            logger.warning("the schedule is gone from Redis, as after a FLUSHDB: it is written again")
            self.setup_schedule()
        return float(_tick(self, *args, **kwargs))
    except LockError as error:
        logger.warning("this Beat no longer holds %s (%s): it asks for it again", self.lock_key, error)
        self.lock.acquire()  # Waits for as long as another Beat holds it.
        self.setup_schedule()
        return 0.0


def _lead(sender: Any = None, **_: Any) -> None:
    scheduler = sender.scheduler
    if isinstance(scheduler, redbeat.RedBeatScheduler):
        redbeat.acquire_distributed_beat_lock(sender)  # Waits for the lock.
        if scheduler.lock is not None:
            scheduler.setup_schedule()


def _warn_of_differences(self: Any) -> None:
    conf, client = self.app.redbeat_conf, redbeat.get_redis(self.app)
    if not client.exists(conf.lock_key):
        return  # Nobody leads.
    mine = {name: self._maybe_entry(name, entry) for name, entry in conf.schedule.items()}
    differing = {name for name in client.smembers(conf.statics_key) if name not in mine}
    for name, entry in mine.items():
        stored, own = client.hget(entry.key, "definition"), {field: getattr(entry, field) for field in FIELDS}
        if stored is None or json.loads(stored) != json.loads(json.dumps(own, cls=redbeat.RedBeatJSONEncoder)):
            differing.add(name)
    differing.discard("celery.backend_cleanup")  # Each Beat adds it when it leads.
    if differing:
        logger.warning(
            "two Beats with different schedules: the one that leads has other entries than this one, which stands by "
            "(%s); give both the same version and settings", ", ".join(sorted(differing)),
        )  # fmt: skip
