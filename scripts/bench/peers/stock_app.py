"""Celery as its manual begins: Redis as broker and backend, nothing of ours."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from graft.scripts.bench import work

app = Celery("stock", broker=os.environ[work.REDIS_URL], backend=os.environ[work.REDIS_URL])


@app.task(name="noop")
def noop(item: Any) -> Any:
    return work.noop(item)


@app.task(name="spin")
def spin(item: Any) -> Any:
    return work.spin(item)


@app.task(name="anoop")
def anoop(item: Any) -> Any:
    """Celery has no async tasks; this is what people write instead."""
    return work.noop(item)


TASKS = {"noop": noop, "spin": spin, "anoop": anoop}
