"""Django's settings; Celery's are those that begin with ``CELERY_``."""

from __future__ import annotations

import os

SECRET_KEY = "for tests alone"
INSTALLED_APPS = ["tests.projects.bakery.orders"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["BAKERY_DATABASE"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
CELERY_BROKER_URL = os.environ["SHOP_REDIS"]
CELERY_RESULT_BACKEND = os.environ["SHOP_REDIS"]
CELERY_TASK_ROUTES = {"tests.projects.bakery.orders.tasks.crash": {"queue": "risky"}}
