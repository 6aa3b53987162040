"""Our app on kombu's own Redis transport and Celery's own consumer, to see what the hardened ones cost."""

from __future__ import annotations

from graft.celery import app


def use_stock_transport() -> None:
    app.amqp_cls = "celery.app.amqp:AMQP"
    app.__dict__.pop("amqp", None)
    app.conf.worker_consumer = "celery.worker.consumer:Consumer"


use_stock_transport()

__all__ = ["app", "use_stock_transport"]
