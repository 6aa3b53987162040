"""Which of Celery's pools a hardened worker runs with: threads are ours, green ones are refused, prefork may be direct.

gevent and eventlet switch greenlets inside the code that settles messages and speaks to Redis, which is written for
processes, threads and asyncio. With them messages ran and were never acknowledged, at 6 tasks a second.
"""

from __future__ import annotations

import os
from typing import Any, Final

import celery.concurrency
import celery.concurrency.prefork
import celery.concurrency.thread

from graft.config.deployment import settings

GREEN: Final = ("gevent", "eventlet")
REMEDY: Final = (
    "for thousands of tasks that wait, use the io lane (celery -A APP worker -P custom, with "
    "CELERY_CUSTOM_WORKER_POOL=graft.workers.aio_pool:TaskPool); for other code -P prefork or -P threads"
)


def prepare(worker: Any) -> None:
    """Have *worker* use our threads where it asks for threads, and our processes where the settings ask for them.

    Raises:
        SystemExit: it asks for gevent or eventlet.
    """
    asked = worker.pool_cls
    name = asked if isinstance(asked, str) else getattr(asked, "__module__", "")
    if name == "custom":
        name = os.environ.get("CELERY_CUSTOM_WORKER_POOL", "")
    green = next((each for each in GREEN if each in name), None)
    if green:
        raise SystemExit(f"a hardened worker does not run on {green} (pool {name}): {REMEDY}")
    kind = celery.concurrency.get_implementation(asked)
    if kind is celery.concurrency.thread.TaskPool:
        from graft.workers.thread_pool import ThreadPool

        worker.pool_cls = ThreadPool
    elif kind is celery.concurrency.prefork.TaskPool and settings().pool == "direct":
        from graft.workers.direct.direct_pool import TaskPool

        worker.pool_cls = TaskPool
