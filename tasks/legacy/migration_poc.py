"""The tasks of the earlier proof of concept, under their short names and under their old module's.

A plain ``.delay()`` arrives in a queue that is read: the old one where ``GRAFT_POC_TASKS=true``, else ``default``. The
setting also has Beat send the last two (``config/beat_schedule.py``). Arguments and results of tasks called by name are
JSON. No task waits for another: one that needs others is replaced by them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from celery import current_task, group

from graft.config.own_task import own_task
from graft.tasks.base import ReliableTask
from graft.tasks.delivery.run_counter import Runs
from graft.tasks.policy import ExactWaits

OLD_MODULE: Final = "celery_migration_poc"
LIMITS: Final[dict[str, Any]] = {"track_started": True, "time_limit": 300, "soft_time_limit": 270}


class PocTask(ReliableTask):
    """A task of the proof of concept; the signature that replaces it stores its result under the same id."""

    abstract = True

    def hand_over(self, signature: Any) -> Any:
        """End here; *signature* stores its result under this task's id. Nothing waits."""
        record = Runs(self.request.id, self.request.retries)
        with record.client.pipeline(transaction=False) as pipe:
            record.forget(pipe)
            pipe.execute()
        return self.replace(signature)


def both_names(old_module: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as a task under its own name and as ``<old_module>.<name>``; gives the one of short name."""

    def register(func: Callable[..., Any]) -> Any:
        merged = {"base": PocTask, **LIMITS, **options}
        own_task(f"{old_module}.{func.__name__}", **merged)(func)
        return own_task(func.__name__, **merged)(func)

    return register


def worker_name() -> str:
    """The node name of the worker that runs this; the machine's name outside of workers."""
    request = getattr(current_task, "request", None)
    return str(getattr(request, "hostname", None) or platform.node())


def now() -> str:
    return datetime.now(UTC).isoformat()


def process(item: Mapping[str, Any]) -> dict[str, Any]:
    """The work of the task ``process_item``: a stamp for one item with an ``id``."""
    return {"id": item.get("id"), "processed": True, "timestamp": now(), "worker_id": worker_name()}


# Celery's own two attributes say the same as the policy, for readers of them.
@both_names(OLD_MODULE, policy=ExactWaits(runs=4, base=60.0, on=Exception), max_retries=3, default_retry_delay=60)
def process_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """``id``, ``processed``, ``timestamp`` (ISO, UTC) and ``worker_id``; retried 3 times, 60 s apart."""
    return process(item)


@both_names(OLD_MODULE, bind=True)
def batch_process(self: PocTask, items: list[Mapping[str, Any]]) -> Any:
    """The results of ``process_item`` for each of *items*, in their order.

    The items are tasks of their own, retried as such, and their results come together under this task's id. Difference:
    the proof of concept waited for them inside the task, which Celery refuses.
    """
    return self.hand_over(group(process_item.s(item) for item in items)) if items else []


@both_names(OLD_MODULE)
def heavy_computation(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": data.get("id"), "result": "computed", "timestamp": now()}


@both_names(OLD_MODULE)
def cleanup_old_results() -> dict[str, int]:
    """Remove results that should be gone (``tasks/cleanup/redis_keys.py``); ``{"cleaned": n}``."""
    from graft.tasks.cleanup.redis_keys import remove_old_results

    return {"cleaned": remove_old_results()}


@both_names(OLD_MODULE)
def collect_metrics() -> dict[str, Any]:
    """Measure the deployment and keep the figures in Redis for a day (migration_poc_metrics.py); the figures."""
    from graft.tasks.legacy import migration_poc_metrics

    figures = migration_poc_metrics.measure()
    migration_poc_metrics.keep(figures)
    return figures
