"""Celery's settings of the shop."""

from __future__ import annotations

import os
from typing import Any

from kombu import Exchange, Queue

broker_url = os.environ["SHOP_REDIS"]
result_backend = os.environ.get("SHOP_RESULTS", broker_url)
worker_soft_shutdown_timeout = float(os.environ.get("SHOP_SOFT", 0))
task_routes = {"tests.projects.shop.tasks.report": {"queue": "reports"}}
if os.environ.get("SHOP_LATE"):  # What stock Celery advises for work that must not be lost.
    task_acks_late = task_reject_on_worker_lost = True
if os.environ.get("SHOP_EXCHANGES"):
    task_queues = [
        Queue("celery"),
        Queue("direct-queue", Exchange("shop-direct", type="direct"), routing_key="direct-key"),
        Queue("topic-queue", Exchange("shop-topic", type="topic"), routing_key="news.#"),
    ]
beat_schedule: dict[str, dict[str, Any]] = {
    os.environ.get("SHOP_ENTRY", "every-second"): {
        "task": "tests.projects.shop.tasks.write",
        "schedule": 1.0,
        "args": ["beat"],
    },
}
