"""Workers as the facades see them: their load, memory and function stats; and resizing a worker group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis

from graft.compat.placement import is_local
from graft.config.deployment import app, app_name, settings
from graft.tasks.errors import TaskQueueError
from graft.tasks.monitoring import function_stats as stats_store
from graft.tasks.monitoring import worker_registry
from graft.tasks.monitoring.worker_registry import workers
from graft.tasks.shared.primitive import outage_is_unavailable

T = TypeVar("T")

ASK_EVERY: Final = 1.0  # Seconds.

logger = logging.getLogger(__name__)

_warned: set[str] = set()


def function_stats(name: str | None = None) -> dict[str, dict[str, float]]:
    """By callable: ``items``, ``seconds``, ``errors`` and ``last``, counted by the workers; {} without a broker.

    Args:
        name: ``module:qualname``, for the stats of that one alone.
    """
    return {
        key: {"items": each.items, "seconds": each.seconds, "errors": each.errors, "last": each.last}
        for key, each in _read("function stats", lambda: stats_store.read(name)).items()
    }


def worker_memory() -> dict[str, int]:
    """Resident bytes of each live worker with its pool processes, by node name; {} without a broker."""
    return _read("memory of the workers", lambda: {worker.name: worker.memory for worker in workers()})


def _read(what: str, read: Callable[[], dict[str, T]]) -> dict[str, T]:
    if is_local():
        return {}
    try:
        return read()
    except (redis.RedisError, OSError) as error:
        level = logging.DEBUG if what in _warned else logging.WARNING
        logger.log(level, "no %s: %s cannot be read: %s", what, settings().broker_name, error)
        _warned.add(what)
        return {}


def worker_loads() -> list[dict[str, Any]]:
    """The live workers as ``distribute_tasks`` takes them.

    ``id``, ``load`` (running and waiting messages by capacity) and ``capacity`` (pool processes).
    """
    return [
        {
            "id": worker.name,
            "load": (worker.busy + worker.waiting) / max(worker.processes, 1),
            "capacity": worker.processes,
        }
        for worker in workers()
    ]


def hosts(queue: str) -> set[str]:
    """The machines of the live workers that read *queue*.

    Raises:
        BrokerUnavailable: Redis did not answer.
    """
    with outage_is_unavailable():
        return {worker.host for worker in workers() if queue in worker.queues and worker.host}


def slots(queue: str) -> int:
    """Slots of the live workers that read *queue*.

    Raises:
        BrokerUnavailable: Redis did not answer.
    """
    with outage_is_unavailable():
        return worker_registry.slots(queue)


def is_in_group(worker: str, group: str) -> bool:
    """Whether the node name *worker* is in *group*: ``cpu@host`` and ``cpu1@host`` are in ``cpu``.

    Workers of one group on one machine are numbered, by ``celery multi`` as by the local stack.
    """
    name = worker.partition("@")[0]
    return group in (name, name.rstrip("0123456789"))


def resize_workers(group: str, processes: int, prefetch: int | None = None, timeout: float = 5.0) -> dict[str, int]:
    """Bring the pool of every worker of *group* to exactly *processes*. Blocks until they answer; processes by node.

    Raises:
        TaskQueueError: no worker of that group is alive, or none answered within *timeout* seconds.
    """
    names = [worker.name for worker in workers() if is_in_group(worker.name, group)]
    if not names:
        raise TaskQueueError(
            f"no worker named {group}@… is alive; start one with: celery -A {app_name()} worker -n {group}@%h"
        )
    return resize(names, processes, prefetch, timeout)


def resize(names: Sequence[str], processes: int, prefetch: int | None = None, timeout: float = 5.0) -> dict[str, int]:
    """As :func:`resize_workers`, for the workers of these node names."""
    sizes: dict[str, int] = {}
    deadline = time.monotonic() + timeout
    # Control commands travel by pub/sub, which forgets what a worker did not hear; asking twice changes nothing.
    while (missing := [name for name in names if name not in sizes]) and (left := deadline - time.monotonic()) > 0:
        replies = app().control.broadcast(
            "graft_resize",
            arguments={"size": processes, "prefetch": prefetch},
            destination=missing,
            reply=True,
            limit=len(missing),
            timeout=min(ASK_EVERY, left),
        )
        for reply in replies or []:
            for name, answer in reply.items():
                if "error" in answer:
                    raise TaskQueueError(f"{name} could not be resized to {processes} processes: {answer['error']}")
                sizes[name] = int(answer["processes"])
    if not sizes:
        raise TaskQueueError(f"none of {', '.join(names)} answered within {timeout:g} s")
    return sizes
