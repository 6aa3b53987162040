"""The app of the Django project."""

from __future__ import annotations

import os

from celery import Celery

import graft

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.projects.bakery.settings")

app = Celery("bakery")
if os.environ.get("HARDEN"):
    graft.harden(app)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
