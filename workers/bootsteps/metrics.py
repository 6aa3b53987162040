"""Counts what this worker's processes run, for Prometheus: ``GRAFT_METRICS_PORT=9809`` serves /metrics.

    pool process 0 ─ signals ─► counter_0.db ┐
    pool process 1 ─ signals ─► counter_1.db ├─► main process: a thread adds them up per request ─► /metrics
    main process (other pools) ► counter_main.db ┘

Files are named after indexes in the pool, not after processes: a replacement goes on with its predecessor's counts, so
nothing is lost when a process is replaced, and no file is left behind. Metrics of the whole deployment (queues, items
by callable, verdicts) come from ``celery -A graft exporter``.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from billiard.process import current_process
from celery import bootsteps, signals
from celery.worker import state
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from graft.config import redis_clock
from graft.config.deployment import settings
from graft.tasks.messages.message_format import waits_since
from graft.workers.bootsteps.heartbeat import unseen_runs

logger = logging.getLogger(__name__)

SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOREIGN: Final = "other"  # Stands for names that come from messages and are no task of ours.
DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


class Counts:
    """The metrics that every process of the worker counts."""

    def __init__(self) -> None:
        registry = CollectorRegistry()  # Read from the files alone.
        self.tasks = Counter(
            "graft_worker_tasks", "Task messages run, by how they ended", ["task", "state"], registry=registry
        )
        self.duration = Histogram(
            "graft_worker_task_duration_seconds", "Time from the start of a task to its end", ["task"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.wait = Histogram(
            "graft_worker_task_wait_seconds", "Time from sending a message to the start of its task", ["queue"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip


class Meter:
    """Listens to Celery's signals in this process and its children."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self._begun: dict[str, float] = {}

    def connect(self) -> None:
        signals.task_prerun.connect(self.began, weak=False)
        signals.task_postrun.connect(self.ended, weak=False)

    def began(self, task_id: str = "", task: Any = None, **_: Any) -> None:
        self._begun[task_id] = time.perf_counter()
        request: Any = getattr(task, "request", None)
        since = waits_since({**(getattr(request, "headers", None) or {}), "eta": getattr(request, "eta", None)})
        if since is not None and not request.retries:
            queue = (request.delivery_info or {}).get("routing_key") or FOREIGN
            # Two machines' clocks are compared; a wait below zero is none.
            self.counts.wait.labels(queue).observe(max(0.0, redis_clock.now() - since))

    def ended(self, task_id: str = "", task: Any = None, state: str | None = None, **_: Any) -> None:
        name = getattr(task, "name", None) or FOREIGN
        self.counts.tasks.labels(name, (state or "unknown").lower()).inc()
        began = self._begun.pop(task_id, None)
        if began is not None:
            self.counts.duration.labels(name).observe(time.perf_counter() - began)


def pool_index() -> str:
    """The index of this process in the pool, or ``main``. No two processes of a worker have the same at a time."""
    index = getattr(current_process(), "index", None)
    return "main" if index is None else str(index)


class Gauges(Collector):
    """The gauges of the main process, read at each request."""

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer

    def collect(self) -> Iterable[Metric]:
        running = len(state.active_requests)
        for name, text, value in (
            ("graft_worker_slots", "Slots of the pool", self.consumer.pool.num_processes),
            ("graft_worker_running_tasks", "Task messages that run now", running + unseen_runs(self.consumer.pool)),
            (
                "graft_worker_prefetched_tasks",
                "Task messages fetched and not begun",
                max(0, len(state.reserved_requests) - running),
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)


class _Summed(Collector):
    """The files of all processes, added up while no process is being forked."""

    def __init__(self, path: str, lock: threading.Lock) -> None:
        self.path, self.lock = path, lock

    def collect(self) -> Iterable[Metric]:
        with self.lock:
            return list(MultiProcessCollector(None, self.path).collect())  # type: ignore[no-untyped-call]


class Metrics(bootsteps.StartStopStep):
    """Serves /metrics from the start of the consumer to the end of the worker, where a port is set."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._server: Any = None

    def include_if(self, consumer: Any) -> bool:
        return bool(settings().metrics_port)

    def start(self, consumer: Any) -> None:
        if self._server is not None:  # After a reconnect.
            return
        registry = CollectorRegistry()
        registry.register(_Summed(os.environ[DIRECTORY], _forking))
        registry.register(Gauges(consumer))
        config = settings()
        try:
            self._server, _ = start_http_server(config.metrics_port, config.metrics_address, registry)
        except OSError as error:
            logger.error(
                "no metrics, GRAFT_METRICS_PORT=%d on %s cannot be opened: %s; give each worker of a machine its own",
                config.metrics_port, config.metrics_address, error,
            )  # fmt: skip

    def shutdown(self, consumer: Any) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


_forking = threading.Lock()


def prepare() -> None:
    """Set up, before the pool is forked, that and where all processes write."""
    if not settings().metrics_port or DIRECTORY in os.environ:
        return
    path = tempfile.mkdtemp(prefix="graft-metrics-")
    os.environ[DIRECTORY] = path
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == owner else None)
    # The library chooses when it is imported, which the command line does before a setting is read.
    values.ValueClass = values.MultiProcessValue(pool_index)  # type: ignore[no-untyped-call]
    Meter(Counts()).connect()
    # The thread that serves requests must hold no lock while a pool process is forked: the child would wait for ever.
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)
