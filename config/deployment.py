"""What one process has one of: the app, the settings, and parts such as the publisher, each made at its first use.

    settings() · app() · part(Publisher)          the deployment of this process
    adopt(app)                                    somebody's app takes the place of our own, before anything is sent

Nothing here happens at import. After a fork the child has none of its parent's threads, locks and connections: its
parts are made anew. A part that must outlive a fork has a method ``after_fork``; it stays, and the method is called.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from graft.config.settings import Settings, warn_of_unknown

T = TypeVar("T")


class Deployment:
    """One app with all that belongs to it, in one process."""

    def __init__(self) -> None:
        self._app: Any = None
        self._settings: Settings | None = None
        self._has_checked_names = False
        self._read_settings: Callable[[], Settings] = Settings
        self._lock = threading.RLock()
        self._parts: dict[Callable[[], Any], Any] = {}
        self._on_adoption: list[Callable[[Any], None]] = []

    @property
    def app(self) -> Any:
        """The Celery app; our own unless another was adopted."""
        if self._app is None:
            # Only now, so that a facade can be imported without Celery; by name, since it imports this module.
            import_module("graft.config.celery_app")
        return self._app

    @property
    def settings(self) -> Settings:
        """The settings, read once: from the environment, and from the configuration of an app that was adopted."""
        if self._settings is None:
            self._settings = self._read_settings()
            if not self._has_checked_names:
                self._has_checked_names = True
                warn_of_unknown()
        return self._settings

    def adopt(self, app: Any, read_settings: Callable[[], Settings] = Settings) -> None:
        """Make *app* the app of this process; one adopted earlier keeps the tasks that it has got."""
        # `celery.current_app` is a proxy, and another object than the app that it stands for.
        self._app = getattr(app, "_get_current_object", lambda: app)()
        self._read_settings, self._settings = read_settings, None
        for func in tuple(self._on_adoption):
            func(self._app)

    def forget(self) -> None:
        """Have no app, as before one was adopted."""
        self._app, self._settings, self._read_settings = None, None, Settings
        self._parts.clear()

    def on_adoption(self, func: Callable[[Any], None]) -> None:
        """Call ``func(app)`` for the app of this process, now if there is one, and for each that is adopted later."""
        self._on_adoption.append(func)
        if self._app is not None:
            func(self._app)

    @property
    def is_adopted(self) -> bool:
        """Whether there is an app yet."""
        return self._app is not None

    def has(self, app: Any) -> bool:
        """Whether *app* is the app of this process."""
        return app is self._app

    def reread_settings(self) -> None:
        """Read the environment again when it is next asked for: it has changed."""
        self._settings = None

    def part(self, make: Callable[[], T]) -> T:
        """The one that *make* returned when it was first called in this process."""
        try:
            found: T = self._parts[make]
        except KeyError:
            with self._lock:
                if make not in self._parts:
                    self._parts[make] = make()
                found = self._parts[make]
        return found

    def existing(self, make: Callable[[], T]) -> T | None:
        """The part that *make* has returned already, or None."""
        return self._parts.get(make)

    def drop(self, make: Callable[[], Any]) -> None:
        """Have the part made anew when it is next needed."""
        self._parts.pop(make, None)

    def after_fork(self) -> None:
        """In a forked child: keep the parts that have a method of this name, and call it; forget the others."""
        self._lock = threading.RLock()
        self._parts = {make: found for make, found in self._parts.items() if hasattr(found, "after_fork")}
        for found in list(self._parts.values()):
            found.after_fork()


current = Deployment()
"""The deployment of this process."""
os.register_at_fork(after_in_child=current.after_fork)

adopt = current.adopt
part = current.part
existing = current.existing


def app() -> Any:
    """The Celery app of this process."""
    return current.app


def settings() -> Settings:
    """The settings of this process."""
    return current.settings


def app_name() -> str:
    """What follows ``celery -A`` for this process's app, for messages that name a command."""
    for option, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if option in ("-A", "--app") and value:
            return value
        if option.startswith("--app="):
            return option.removeprefix("--app=")
    return str(app().main)
