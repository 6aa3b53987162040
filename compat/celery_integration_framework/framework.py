"""CeleryIntegrationFramework makes tasks, sends them, and reads their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import redis

from graft.compat.celery_integration_framework import stats
from graft.compat.celery_integration_framework.batches import CeleryBatchProcessor
from graft.compat.celery_integration_framework.client import (
    DEFAULT_QUEUE,
    MIDDLE,
    FrameworkTask,
    make_app,
    queue_of,
)
from graft.compat.celery_integration_framework.data import TaskResult, TaskStatus, WorkerStatus
from graft.config.deployment import settings
from graft.config.redis_client import connect
from graft.config.settings import Settings, without_password
from graft.tasks.errors import BrokerUnavailable, ResultTimeout
from graft.tasks.results import call_records
from graft.tasks.running import call_task
from graft.tasks.sending import by_task_name


class CeleryIntegrationFramework:
    """Functions as tasks, on the workers of a deployment.

    Source: ``celery_integration_framework.CeleryIntegrationFramework``. The app is a client's. The workers are those of
    the deployment (``celery -A graft worker``, with this process's signing key); they run the functions by import or as
    copies (rule R2 of the contract) and need not know the tasks. The queues ``high_priority``, ``normal`` and
    ``low_priority`` are the deployment's ``high``, ``default`` and ``low``. Messages are compressed with gzip.

    Args:
        app_name: prefix of the tasks' names, and owner of their stats.
        broker_url: Default: the deployment's. Another Redis needs workers of celery-graft that read it.
        result_backend: Default: *broker_url* if that is given, else the deployment's.

    Attributes:
        app: the Celery app.
        tasks: the tasks of :meth:`create_task`, by name.

    Raises:
        ValueError: an address that is not Redis.
    """

    def __init__(
        self, app_name: str = "celery_integration_framework", broker_url: str = "", result_backend: str = ""
    ) -> None:
        config = settings()
        if broker_url or result_backend:
            backend = result_backend or broker_url
            config = Settings(broker_url=broker_url or config.broker_url, result_backend=backend)
        self.app_name = app_name
        self.app = make_app(app_name, config)
        self.tasks: dict[str, FrameworkTask] = {}
        self._redis = connect(config)
        self._backend_name = without_password(config.backend_url)
        self._processors: list[CeleryBatchProcessor] = []
        self._is_shut_down = False

    def create_task(
        self,
        func: Callable[..., Any],
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: float = MIDDLE,
        retry_limit: int = 3,
        *,
        retry_wait: float = 60.0,
    ) -> FrameworkTask:
        """*func* as a task, for ``.delay()``, ``.apply_async()`` or :meth:`submit_task`.

        Args:
            func: sync or async; importable on the workers, or capturing nothing mutable.
            name: Default: ``<app_name>.<function>``. A task of that name is replaced.
            queue: one of the framework's three, or any of the deployment's.
            priority: 0 to 10, larger goes first among the messages of its queue.
            retry_limit: runs after the first; then the task fails with the function's own last error.
            retry_wait: seconds before the first of them, doubled for each that follows.

        Raises:
            ValueError: no such queue; *retry_limit* or *retry_wait* below 0.
            TypeError: *func* cannot be called.
        """
        if not callable(func):
            raise TypeError(f"func {func!r} cannot be called")
        if retry_limit < 0 or retry_wait < 0:
            raise ValueError(f"retry_limit={retry_limit} and retry_wait={retry_wait:g} s must not be negative")
        task = FrameworkTask(
            self.send,
            func,
            name=name or f"{self.app_name}.{getattr(func, '__name__', type(func).__name__)}",
            queue=queue_of(queue),
            priority=priority,
            retry_limit=retry_limit,
            retry_wait=retry_wait,
        )
        self.app.tasks.pop(task.name, None)  # Celery warns of a name that is taken.
        self.app.register_task(task)
        self.tasks[task.name] = task
        return task

    def submit_task(
        self,
        task: FrameworkTask | str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        queue: str = DEFAULT_QUEUE,
        countdown: float = 0,
        eta: float | datetime | None = None,
    ) -> str:
        """Send a task; its id.

        Args:
            task: a task of :meth:`create_task`, or the name of one, or of a task of the deployment.
            args: positional arguments, any picklable values; JSON for the deployment's own tasks.
            kwargs: keyword arguments.
            queue: with "normal", the default, the task's own queue.
            countdown: seconds before the task may run.
            eta: when the task may run, in seconds of the epoch or as a datetime (naive: local time).

        Raises:
            ValueError: no task or queue of that name; *countdown* below 0; *countdown* together with *eta*.
            UnreferenceableError: a worker can neither import nor receive the function.
            BrokerUnavailable: the broker did not take the message.
            RuntimeError: after :meth:`shutdown`.
        """
        return self._submit(task, args, kwargs or {}, queue, _when(countdown, eta), None)

    def submit_batch(self, task: FrameworkTask | str, batch: list[Any], queue: str, task_id: str) -> str:
        """Send one call of *task* with *batch* as its argument, under *task_id*."""
        return self._submit(task, [batch], {}, queue, None, task_id)

    def _submit(
        self,
        task: FrameworkTask | str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        queue: str,
        eta: datetime | None,
        task_id: str | None,
    ) -> str:
        options: dict[str, Any] = {"task_id": task_id, "eta": eta}
        if queue != DEFAULT_QUEUE:
            options["queue"] = queue_of(queue)
        found = self.tasks.get(task) if isinstance(task, str) else task
        if isinstance(found, FrameworkTask):
            return self.send(found, args, kwargs, **options)
        name = by_task_name.find(task if isinstance(task, str) else task.name).name
        return self._publish(name, args, kwargs, options)

    def send(self, task: FrameworkTask, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> str:
        """Send one call of *task*, *options* as ``apply_async`` has them; its id."""
        wire = call_task.seal(task.func, args, kwargs)
        how = {"owner": self.app_name, "retry_limit": task.retry_limit, "retry_wait": task.retry_wait}
        defaults = {"queue": task.queue, "priority": task.step, "shadow": task.name, "argsrepr": repr(args)[:200]}
        return self._publish(call_task.CALL, [wire], how, defaults | options)

    def _publish(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]) -> str:
        if self._is_shut_down:
            raise RuntimeError(f"the framework {self.app_name} has been shut down")
        eta = options.get("eta")
        delay = options.get("countdown") or (max(0.0, eta.timestamp() - time.time()) if eta else 0.0)
        task_id = options.pop("task_id", None) or str(uuid4())
        try:
            call_records.submitted(self._redis, task_id, delay, notes_end=name == call_task.CALL)
        except redis.RedisError as error:
            raise BrokerUnavailable(f"{self._backend_name} does not answer: {error}") from error
        return by_task_name.send(name, args, kwargs, celery=self.app, task_id=task_id, **options)

    def get_task_result(self, task_id: str) -> TaskResult:
        """The task's present status and result; PENDING also for an unknown id."""
        meta = self.app.backend.get_task_meta(task_id, cache=False)
        record = call_records.read(self._redis, task_id)
        status = TaskStatus.__members__.get(meta["status"], TaskStatus.STARTED)
        result = meta["result"]
        if status is TaskStatus.SUCCESS and record.is_sealed:
            result = call_task.value_of(task_id, result)
        elif status is TaskStatus.FAILURE and record.error:
            result = call_task.error_of(task_id, record.error)
        elif status in (TaskStatus.PENDING, TaskStatus.STARTED):
            result = None
        return TaskResult(
            task_id=task_id,
            status=status,
            result=result,
            traceback=meta.get("traceback"),
            execution_time=record.seconds,
            worker_name=record.worker or None,
            created_at=_time(record.created),
            completed_at=_time(record.completed),
        )

    def wait_for_task(self, task_id: str, timeout: float | None = None) -> TaskResult:
        """The task's result when it has ended, or its status after *timeout* seconds; a failure is not raised.

        Raises:
            RuntimeError: called inside a task.
        """
        try:
            by_task_name.wait([task_id], timeout, self.app)
        except ResultTimeout:
            pass  # The status is read below.
        return self.get_task_result(task_id)

    def get_worker_stats(self) -> dict[str, Any]:
        """Stats of this ``app_name``, over all its clients, and the workers that are alive.

        ``active_workers``, ``total_tasks`` (ended ones), ``successful_tasks``, ``failed_tasks``, ``success_rate`` (0 to
        100; 0 before the first), ``average_execution_time`` (s), and ``workers``: WorkerMetrics as dicts, by name. The
        workers count in Redis, for 30 days.
        """
        return stats.of(self.app_name, self._redis)

    def worker_status(self, worker_name: str) -> WorkerStatus:
        """Whether the worker is alive, and busy."""
        return stats.status_of(worker_name, self._redis)

    def create_batch_processor(self, batch_size: int = 10, max_parallel: int = 5) -> CeleryBatchProcessor:
        """A CeleryBatchProcessor whose tasks are this framework's."""
        processor = CeleryBatchProcessor(self, batch_size, max_parallel)
        self._processors.append(processor)
        return processor

    def shutdown(self) -> None:
        """Send nothing more, and close connections. Sent tasks run; the workers go on."""
        self._is_shut_down = True
        for processor in self._processors:
            processor.close()
        self.app.close()
        self._redis.close()


def _when(countdown: float, eta: float | datetime | None) -> datetime | None:
    if countdown < 0:
        raise ValueError(f"countdown={countdown:g} s must not be negative")
    if countdown and eta is not None:
        raise ValueError(f"countdown={countdown:g} s and eta={eta} cannot both be followed; give one of them")
    if eta is None:
        return _time(time.time() + countdown) if countdown else None
    return eta.astimezone(UTC) if isinstance(eta, datetime) else _time(eta)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
