"""The framework's Celery app, and its tasks, whose calls run on the deployment's workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from celery import Celery, Task

from graft.config import queues
from graft.config.celeryconfig import defaults, options
from graft.config.harden import AMQP
from graft.config.settings import Settings

DEFAULT_QUEUE: Final = "normal"
QUEUES: Final = {"high_priority": "high", DEFAULT_QUEUE: "default", "low_priority": "low"}
MIDDLE: Final = 5  # Of the framework's priorities, 0 to 10; larger goes first.


def make_app(name: str, config: Settings) -> Any:
    """An app of that name with the deployment's options, gzip and a prefetch of 4; not the process's current one."""
    app = Celery(name, set_as_current=False, amqp=AMQP)
    app.config_from_object(
        defaults(config) | options(config) | {"task_compression": "gzip", "worker_prefetch_multiplier": 4}
    )
    return app


def queue_of(name: str) -> str:
    """The deployment's queue for one of the framework's, or for one of its own.

    Raises:
        ValueError: there is none of that name.
    """
    if name in QUEUES:
        return QUEUES[name]
    table = queues.table()
    if table.accepts(name):
        return name
    raise ValueError(f"there is no queue {name!r}; there are {', '.join([*QUEUES, *table.names])}")


def step_of(priority: float) -> int:
    """The broker's step for one of the framework's priorities."""
    return queues.broker_priority(priority - MIDDLE)


class FrameworkTask(Task):  # type: ignore[misc]  # Celery's Task has no types.
    """A function with a name, a queue, a priority and a number of retries. A direct call runs in this process."""

    abstract = True

    def __init__(
        self,
        send: Callable[..., str],
        func: Callable[..., Any],
        *,
        name: str,
        queue: str,
        priority: float,
        retry_limit: int,
        retry_wait: float,
    ) -> None:
        self._send = send
        self.run = self.func = func
        self.name = name
        self.queue = queue
        self.step = step_of(priority)
        self.retry_limit = retry_limit
        self.retry_wait = retry_wait

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send a call, as Celery's ``apply_async`` does with ``queue``, ``countdown``, ``eta``, ``priority``."""
        return self.AsyncResult(self._send(self, args or (), kwargs or {}, **options))
