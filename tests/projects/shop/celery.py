"""The app; ``HARDEN=1`` hardens it, where ``HARDEN_WHERE`` says: otherwise it is stock Celery, the control."""

from __future__ import annotations

import os

from celery import Celery

import graft
from tests.projects.shop import failpoints

WHERE = os.environ.get("HARDEN_WHERE", "first") if os.environ.get("HARDEN") else ""

app = Celery("shop")
if WHERE == "first":
    graft.harden(app)
app.config_from_object("tests.projects.shop.settings")
if WHERE == "configured":
    app.conf.get("broker_url")
    graft.harden(app)
app.autodiscover_tasks(["tests.projects.shop"])


@app.task(name=os.environ.get("SHOP_TASK", "shop.at_once"))
def at_once(text: str) -> str:
    """Answer."""
    return text


if os.environ.get("SHOP_FAILPOINTS"):
    failpoints.arm()
if WHERE == "finalized":
    app.finalize()
    graft.harden(app)
if WHERE == "last":
    graft.harden(app)
