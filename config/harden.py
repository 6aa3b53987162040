"""``graft.harden(app)``: gives a Celery app our transport, our workers' parts, our guard on each task, and our checks.

    harden(app) ── adopts the app ──┬─ configured (now or later) ─► broker is Redis? ─► transport, defaults, steps, Beat
                                    └─ a worker starts ──────────► workers/app.py: guard, heartbeat, leases …

One line, wherever in the project's ``celery.py``. Nothing is imported that the process does not use: the parts of a
worker are named here by strings. Settings of the app itself count before ours, ``GRAFT_*`` variables are read as ever.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from celery import Celery, signals
from celery.concurrency import ALIASES
from kombu.utils.imports import symbol_by_name

from graft.config import redis_clock
from graft.config.beat_schedule import beat_schedule
from graft.config.celeryconfig import defaults
from graft.config.deployment import current, settings
from graft.config.own_task import task_modules
from graft.config.queues import table
from graft.config.settings import Settings, is_redis, without_password

logger = logging.getLogger(__name__)

AMQP: Final = "graft.tasks.sending.amqp:Amqp"
GROUPS: Final = "graft.tasks.sending.group_sending:install"
UNIQUE: Final = "graft.tasks.sending.unique_tasks:sending"
BACKENDS: Final = {  # By the scheme of the result backend's address.
    "redis": "graft.tasks.results.celery_backend:Backend",
    "rediss": "graft.tasks.results.celery_backend:Backend",
    "sentinel": "graft.tasks.results.celery_backend:SentinelBackend",
}
WORKER: Final = "graft.workers.app"
BEAT: Final = "graft.tasks.health.beat_ticks"
DIRECT: Final = "graft.workers.direct.direct_pool:TaskPool"
PAGES: Final = "graft.scripts.flower_pages.install"
STEPS: Final = {
    "worker": [f"graft.workers.bootsteps.preflight:{name}" for name in ("SigningKeyPreflight", "RedisPreflight")],
    "consumer": [
        f"graft.workers.bootsteps.{name}"
        for name in (
            *("heartbeat:Heartbeat", "pool_upkeep:PoolUpkeep", "lease_renewal:LeaseRenewal", "queue_pause:QueuePause"),
            *("leak_sampler:LeakSampler", "beat_stand_in:BeatStandIn", "queue_throughput:QueueThroughput"),
            *("metrics:Metrics", "cancel_filter:CancelFilter", "batch_feeder:BatchFeeder", "due_mover:DueMover"),
            "direct_taking:DirectTaking",
        )
    ],
}
# Settings of ours that an app's configuration says already, by the name that Celery has for them.
SAID_BY_THE_APP: Final = {
    "soft_time_limit": "task_soft_time_limit",
    "hard_time_limit": "task_time_limit",
    "connect_timeout": "broker_connection_timeout",
}


class HardenError(ValueError):
    """This app cannot be hardened, or not now."""


class Hardening:
    """What was done to one app, for :func:`undo`."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.is_active = False  # Its broker is Redis, so the guarantees hold.
        self._amqp = app.amqp_cls
        self._defaults: dict[str, Any] = {}
        self._sending: Any = None  # Ours, and the app's own where it had one.
        self._their_sending: Any = None
        if not app.configured:
            self._use_amqp(self._configured_amqp)

    def _configured_amqp(self, app: Celery) -> Any:
        """Celery's way out, made once the app is configured: a thread may ask for it while another one does that."""
        app.conf.get("broker_url")
        if app.amqp_cls == self._configured_amqp:
            self.configure()
        return symbol_by_name(app.amqp_cls)(app=app)

    def configure(self) -> None:
        """The app has been configured, perhaps once more."""
        self.is_active = is_redis(address_of(self.app.conf.broker_url))
        if not self.is_active:
            self._use_amqp(self._amqp)
            self._give_back()
            return
        current.reread_settings()
        self._defaults = defaults(settings())
        self.app.conf.add_defaults(self._defaults)
        self._use_amqp(_hardened_amqp(self._amqp))
        symbol_by_name(GROUPS)()
        self.app.loader.override_backends = {**BACKENDS, **self.app.loader.override_backends}
        if "now" not in self.app.__dict__ and type(self.app).now is Celery.now:  # Else it has a clock of its own.
            self.app.now = self._now
        if self._sending is None or self.app.__dict__.get("send_task") is not self._sending:
            self._their_sending = self.app.__dict__.get("send_task")
            self._sending = self.app.send_task = symbol_by_name(UNIQUE)(self.app)
        for blueprint, steps in STEPS.items():
            self.app.steps[blueprint].update(steps)

    def _now(self) -> datetime:
        """What Celery takes for now where it sends (a countdown, an expiry) and where Beat looks what is due."""
        return redis_clock.today().astimezone(self.app.timezone)

    def schedule(self) -> None:
        """Have Beat send our checks too."""
        if self.is_active and settings().beat:
            ours = beat_schedule(settings(), table().maintenance)
            self.app.conf.beat_schedule = {**ours, **(self.app.conf.beat_schedule or {})}

    def undo(self) -> None:
        self._use_amqp(self._amqp)
        theirs = {name: each for name, each in self.app.loader.override_backends.items() if each != BACKENDS.get(name)}
        self.app.loader.override_backends = theirs
        self._give_back()
        for blueprint, steps in STEPS.items():
            self.app.steps[blueprint].difference_update(steps)
        if self.app.configured:
            self.app.conf.defaults[:] = [each for each in self.app.conf.defaults if each is not self._defaults]
            ours = beat_schedule(settings(), table().maintenance)
            kept = {name: entry for name, entry in self.app.conf.beat_schedule.items() if name not in ours}
            self.app.conf.beat_schedule = kept

    def _give_back(self) -> None:
        """Leave its clock, and its way to send a task, as they were."""
        own = self.app.__dict__
        if own.get("now") == self._now:
            del own["now"]
        if self._sending is not None and own.get("send_task") is self._sending:
            del own["send_task"]
            if self._their_sending is not None:
                own["send_task"] = self._their_sending

    def _use_amqp(self, amqp: Any) -> None:
        self.app.amqp_cls = amqp
        self.app.__dict__.pop("amqp", None)  # Made anew at its next use.
        self.app.__dict__.pop("_pool", None)


def _offer_pool() -> None:
    """Have ``celery worker -P direct`` mean our pool. The command line has read Celery's list of pools by now."""
    ALIASES["direct"] = DIRECT
    command = sys.modules.get("celery.bin.worker")
    if command is not None and "direct" not in command.WORKERS_POOL.choices:
        command.WORKERS_POOL.choices = (*command.WORKERS_POOL.choices, "direct")


def harden(app: Celery) -> Celery:
    """Give *app*, a Celery app with its broker on Redis, every guarantee of celery-graft; returns it.

    Call it in the module that makes the app, before or after its configuration and its tasks. ``celery -A`` that
    module is then the command for workers, Beat and Flower as before, and for ours: ``celery -A shop doctor``.

    What the app sets itself is respected; ``celery -A shop doctor`` says where that costs a guarantee. With a broker
    that is not Redis nothing changes but for a warning at the start of a worker.

    Raises:
        HardenError: *app* is no Celery app; this process has hardened another, or has sent through our own already;
            or a worker of it runs here already.
    """
    app = _checked(app)
    if _of(app) is not None:
        return app
    _offer_pool()
    hardening = _hardenings[id(app)] = Hardening(app)
    current.adopt(app, lambda: settings_of(app))
    app.on_after_configure.connect(_configure, weak=False)
    if app.configured:
        hardening.configure()
    if "celery.bin.celery" in sys.modules:
        import_module("graft.workers.control")  # `celery -A shop control` lists our commands too.
        if "flower" in sys.argv:
            import_module(PAGES).install()
    return app


def undo(app: Celery) -> Celery:
    """Give back stock Celery, before a worker starts. Messages that wait already run on stock workers as well."""
    hardening = _hardenings.pop(id(app), None)
    if hardening is None:
        raise HardenError(f"{app!r} is not hardened, so there is nothing to undo")
    app.on_after_configure.disconnect(_configure)
    hardening.undo()
    current.forget()
    return app


def is_active(app: Any) -> bool:
    """Whether *app* is hardened, and its broker is Redis."""
    found = _of(app)
    if found is None:
        return False
    found.app.conf.get("broker_url")  # It may not have been configured yet.
    return found.is_active


def why_inactive(app: Celery) -> str:
    """One sentence for people, for an app that :func:`is_active` denies."""
    if _of(app) is None:
        return (
            f"the app {app.main!r} is not hardened: add `import graft; graft.harden(app)` to the module that makes it, "
            "or put `python -m graft harden --` before the command"
        )
    broker = without_password(address_of(app.conf.broker_url)) or "not set"
    return f"the broker of {app.main!r} is {broker}, and Redis is needed: graft.harden() does nothing for it"


def settings_of(app: Celery) -> Settings:
    """Our settings for *app*: what its own configuration says, else what the environment says."""
    conf = app.conf
    said: dict[str, Any] = {"broker_url": address_of(conf.broker_url)}
    backend = address_of(conf.result_backend)
    said["result_backend"] = backend if is_redis(backend) else said["broker_url"]
    for ours, theirs in SAID_BY_THE_APP.items():
        if f"GRAFT_{ours.upper()}" not in os.environ and (value := conf.get(theirs)):
            said[ours] = value
    if "hard_time_limit" in said and "soft_time_limit" not in said:
        said["soft_time_limit"] = said["hard_time_limit"] * 0.98
    elif said.get("soft_time_limit", 0.0) >= Settings.model_fields["hard_time_limit"].default:
        said.setdefault("hard_time_limit", said["soft_time_limit"] + 60.0)
    if master := (conf.broker_transport_options or {}).get("master_name"):
        said["sentinel_master"] = master
    if app.main != "graft":  # A project begins where it stands, and is told what is left to do.
        staged = {"signing": "sign" if os.environ.get("GRAFT_SIGNING_KEY") else "off", "redis_checks": "warn"}
        said |= {name: value for name, value in staged.items() if f"GRAFT_{name.upper()}" not in os.environ}
    return Settings(**said)


def address_of(url: Any) -> str:
    """One text for an address that Celery takes in several forms."""
    return ";".join(url) if isinstance(url, list | tuple) else str(url or "")


_hardenings: dict[int, Hardening] = {}


def _of(app: Any) -> Hardening | None:
    return _hardenings.get(id(app))


def _checked(app: Any) -> Celery:
    app = getattr(app, "_get_current_object", lambda: app)()  # `celery.current_app` is a proxy.
    if not isinstance(app, Celery):
        raise HardenError(f"harden() takes a Celery app, not {app!r:.100}; for instance harden(Celery('shop'))")
    if app.use_fast_trace_task and _of(app) is None:
        raise HardenError(
            f"a worker of {app.main!r} runs in this process already: harden it in the module that makes it"
        )
    if current.is_adopted and not current.has(app):
        raise HardenError(
            f"this process works with the app {current.app.main!r} already, so {app.main!r} cannot be hardened too: "
            "one app for each process, and harden() comes before the first graft.submit"
        )
    return app


def _hardened_amqp(theirs: Any) -> Any:
    """Our way out; a class of the app's own is kept below it."""
    ours, theirs = symbol_by_name(AMQP), symbol_by_name(theirs)
    return ours if issubclass(ours, theirs) else type(f"Hardened{theirs.__name__}", (ours, theirs), {})


def _configure(sender: Any = None, **_: Any) -> None:
    if (found := _of(sender)) is not None:
        try:
            found.configure()
        except ValueError as error:  # Of a receiver of signals Celery would only log it, and go on half hardened.
            raise SystemExit(f"graft.harden() cannot use these settings: {error}") from error


@signals.import_modules.connect
def _import_our_tasks(sender: Any = None, **_: Any) -> None:
    """A worker, Beat or Flower of a hardened app knows our tasks too."""
    if is_active(sender):
        _hardenings[id(sender)].schedule()
        if "celery.apps.beat" in sys.modules:
            import_module(BEAT)
            if find_spec("redbeat"):
                import_module("graft.config.redbeat_scheduler").install()
        for module in task_modules(sender):
            sender.loader.import_task_module(module)


@signals.worker_init.connect
def _become_a_worker(sender: Any = None, **_: Any) -> None:
    found = _of(getattr(sender, "app", None))
    if found is None:
        return
    if is_active(found.app):
        import_module(WORKER).prepare(sender)
    else:
        logger.warning(why_inactive(found.app))
