"""Gives Flower our pages: handlers before its own, templates beside its own, links in its navigation and task page.

Uses what Flower 2.2 hands to Tornado: the list ``flower.urls.handlers`` and the ``settings`` beside it, in which
Tornado looks for a ``template_loader``. A Flower that has something of this no longer starts without the pages, and
says so.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tornado.template import Loader, Template
from tornado.web import StaticFileHandler, url

logger = logging.getLogger(__name__)

HERE: Final = Path(__file__).resolve().parent
TEMPLATES: Final = HERE / "templates"
# What is added to a template of Flower's, and the text that it stands behind or before.
NAVIGATION: Final = ('<ul class="app-nav navbar-nav">', '{% include "graft_nav.html" %}')
TASK: Final = (
    '<div class="detail-actions">',
    '<a class="btn btn-outline-primary" href="{{ reverse_url(\'graft-call\', task.uuid) }}">Runs and letters</a>',
)
ADDED: Final = {"navbar.html": NAVIGATION, "task.html": TASK}
PAGES: Final = (
    "overview",
    "queues",
    "dead_letters",
    "batches",
    "batch",
    "calls",
    "health",
    "process",
    "workers",
    "schedule",
)
NEEDED: Final = ("handlers", "settings")


class NotInstallable(Exception):
    """This Flower cannot take our pages."""


class BothLoaders(Loader):
    """Finds our templates beside Flower's, and adds our links to two of its own."""

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATES / name
        text = (ours if ours.exists() else Path(self.root, name)).read_text(encoding="utf-8")
        if name in ADDED:
            text = added(name, text)
        return Template(text, name=name, loader=self)


def added(name: str, text: str) -> str:
    """Flower's template *name*, whose text is given, with our link."""
    behind, link = ADDED[name]
    if text.count(behind) != 1:
        raise NotInstallable(f"its {name} has no {behind!r}")
    return text.replace(behind, f"{behind}{link}")


def install() -> bool:
    """Have the Flower that starts in this process show our pages; whether it can."""
    try:
        urls = import_module("flower.urls")
        _install(urls)
    except (NotInstallable, ImportError, AttributeError, KeyError, OSError, TypeError) as error:
        logger.warning(
            "Flower %s starts without the pages of celery-graft: %s; they were made for Flower 2.2", _version(), error
        )
        return False
    return True


def _install(urls: Any) -> None:
    if missing := [name for name in NEEDED if not hasattr(urls, name)]:
        raise NotInstallable(f"flower.urls has no {missing[0]}")
    if any(getattr(one, "name", None) == "graft-overview" for one in urls.handlers):
        return
    loader = BothLoaders(urls.settings["template_path"])
    for name in ADDED:
        loader.load(name)
    urls.settings["template_loader"] = loader
    urls.handlers[:0] = handlers()


def handlers() -> list[Any]:
    """The addresses of all pages, and the same as JSON."""
    found = [url(r"/graft/static/(.*)", StaticFileHandler, {"path": str(HERE / "static")}, name="graft-static")]
    for name in ("acts", *(f"pages.{page}" for page in PAGES)):
        found += import_module(f"graft.scripts.flower_pages.{name}").ADDRESSES
    return found


def _version() -> str:
    try:
        return version("flower")
    except ImportError:
        return "(unknown)"
