"""Our app on kombu's own Redis transport and Celery's own consumer, to see what the hardened ones cost."""

from __future__ import annotations

import os

from graft.celery import app
from graft.scripts.bench import work


def use_stock_transport() -> None:
    address = os.environ[work.REDIS_URL]
    app.conf.update(
        broker_url=address,
        broker_read_url=address,
        broker_write_url=address,
        worker_consumer="celery.worker.consumer:Consumer",
    )


use_stock_transport()

__all__ = ["app", "use_stock_transport"]
