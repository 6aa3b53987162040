"""Celery's settings of the shop."""

from __future__ import annotations

import os
from typing import Any

broker_url = os.environ["SHOP_REDIS"]
result_backend = os.environ.get("SHOP_RESULTS", broker_url)
task_routes = {"tests.projects.shop.tasks.report": {"queue": "reports"}}
beat_schedule: dict[str, dict[str, Any]] = {
    "every-second": {"task": "tests.projects.shop.tasks.write", "schedule": 1.0, "args": ["beat"]},
}
