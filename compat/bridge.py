"""The one compat module that talks to the road: where a callable runs and why, and the waiting.

Facades call :func:`map_async` and :func:`call_async` and know nothing of Celery. Every call is counted with the place
it ran in and the reason (call_report.py); what stays with the caller runs on the caller's own event loop, with the
bounds that the old module had.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import redis

from graft.compat.call_report import CallRecord, calls
from graft.config.deployment import settings
from graft.config.redis_client import shared
from graft.tasks import codec
from graft.tasks.callables.importable import name_of
from graft.tasks.callables.references import FunctionRef, refer
from graft.tasks.errors import ItemTimeoutError, TaskQueueError, UnpicklableError, UnreferenceableError
from graft.tasks.policy import RetryPolicy, as_policy
from graft.tasks.worker_runtime import in_worker

if TYPE_CHECKING:
    from graft.tasks.batch import Batch

logger = logging.getLogger(__name__)

Place = Literal["cluster", "local"]
THREAD_FROM = 500  # Items from which pickling leaves the event loop's thread.


@dataclass(frozen=True)
class Placement:
    """Where one call runs, and why. ``frames`` are the items' pickles where these had to be made to find out."""

    where: Literal["cluster", "caller"]
    reason: str
    function: FunctionRef | None = None
    frames: Sequence[bytes] | None = None


async def map_async(
    func: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    call: str,
    concurrency: int,
    in_flight: int,
    place: Place | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: float | None = None,
    priority: float = 0,
) -> list[Any]:
    """Apply *func* to every item; the values in the order of *items*.

    Args:
        call: the old call's name, for the report.
        concurrency: items of one batch; *concurrency* x *in_flight* items run at once at most, in the whole cluster.
        in_flight: batches at once.
        place: force the cluster, or the caller; decided by rule R2 unless given.
        retry: runs of an item that raises; one unless given.
        timeout: seconds one item may run.
        priority: larger goes first.

    Raises:
        Exception: the first failing item's own error; the other items run on, unobserved.
        UnreferenceableError: forced to the cluster, and a worker can neither import nor receive *func*.
        BrokerUnavailable: the broker did not answer.
    """
    policy = as_policy(retry)
    items = list(items)
    placement = await _place(func, items, place)
    account = Account(call, func, placement, len(items))
    try:
        if placement.where == "caller":
            return await _map_here(func, items, concurrency, in_flight, policy, timeout)
        batch = _send(placement, items, concurrency, in_flight, policy, timeout, priority)
        account.batch = batch
        return await _await_batch(batch)
    except BaseException:
        account.failed = True
        raise
    finally:
        account.close()


async def call_async(
    func: Callable[..., Any],
    *args: Any,
    call: str,
    place: Place | None = None,
    retry: RetryPolicy | int | None = None,
    timeout: float | None = None,
    priority: float = 0,
    shown: Callable[..., Any] | None = None,
) -> Any:
    """``func(*args)``, once, on a worker or here; its value or its error.

    *shown* is the caller's own function, for the report, where *func* only wraps it.
    """
    policy = as_policy(retry)
    item: tuple[tuple[Any, ...], dict[str, Any]] = (args, {})
    placement = await _place(func, [item], place)
    account = Account(call, func, placement, 1, shown)
    try:
        if placement.where == "caller":
            return await _call_here(lambda _: func(*args), None, policy, timeout)
        batch = _send(placement, [item], 1, 1, policy, timeout, priority, unpack=True)
        account.batch = batch
        (value,) = await _await_batch(batch)
        return value
    except BaseException:
        account.failed = True
        raise
    finally:
        account.close()


# ---- where it runs ---------------------------------------------------------------------------------------------------


async def _place(func: Callable[..., Any], items: Sequence[Any], place: Place | None) -> Placement:
    """Decide before anything is sent; the reason is never silent."""
    if not callable(func):
        raise TypeError(f"{func!r} is not callable")
    placement = await _decide(func, items, place)
    name = getattr(func, "__qualname__", repr(func))
    logger.debug("%s runs in the %s: %s", name, placement.where, placement.reason)
    return placement


async def _decide(func: Callable[..., Any], items: Sequence[Any], place: Place | None) -> Placement:
    placement = place_function(func, place)
    if placement.where == "caller" or codec.plain_size(items) is not None:
        return placement
    try:
        if len(items) > THREAD_FROM:
            frames = await asyncio.to_thread(_dump, items)
        else:
            frames = _dump(items)
    except UnpicklableError as error:
        if place == "cluster":
            raise
        return Placement("caller", str(error))
    return replace(placement, frames=frames)


def place_function(func: Callable[..., Any], place: Place | None = None) -> Placement:
    """Where calls of *func* run whose arguments can travel, by rule R2 unless *place* forces it.

    Raises:
        UnreferenceableError: forced to the cluster, and a worker can neither import nor receive *func*.
        ValueError: no such place.
    """
    if place not in (None, "cluster", "local"):
        raise ValueError(f"place={place!r} must be 'cluster', 'local' or None")
    if place == "local":
        return Placement("caller", "place='local' was asked for")
    if is_local():
        return Placement("caller", "GRAFT_MODE is local")
    if in_worker():
        return Placement("caller", "it was called inside a task, where waiting for others could block every worker")
    try:
        ref = refer(func, by_value=place == "cluster" and not referenceable(func))
    except UnreferenceableError as error:
        if place == "cluster":
            raise
        return Placement("caller", str(error))
    return Placement("cluster", "a worker can import it" if ref.how == "import" else "it travels by value", ref)


def _dump(items: Sequence[Any]) -> list[bytes]:
    limit = settings().item_limit
    return [codec.dump_item(item, limit, "item", index) for index, item in enumerate(items)]


def is_local() -> bool:
    """Whether this deployment keeps everything in the calling process."""
    return settings().mode == "local"


def referenceable(func: Callable[..., Any]) -> bool:
    """Whether a worker can import *func* by name."""
    try:
        return refer(func).how == "import"
    except (UnreferenceableError, TypeError):
        return False


# ---- on the cluster --------------------------------------------------------------------------------------------------


def _send(
    placement: Placement,
    items: Sequence[Any],
    concurrency: int,
    in_flight: int,
    policy: RetryPolicy,
    timeout: float | None,
    priority: float,
    unpack: bool = False,
) -> Batch:
    from graft.config.queues import broker_priority
    from graft.tasks.sending.batch_sender import Order
    from graft.tasks.sending.sources import ListSource
    from graft.tasks.submit import send

    assert placement.function is not None
    order = Order(
        function=placement.function,
        queue="io" if placement.function.is_async else "batch",
        priority=broker_priority(priority),
        in_flight=in_flight,
        widened=None if placement.function.is_async else in_flight * concurrency,
        concurrency=concurrency,
        timeout=timeout,
        policy=policy,
        unpack=unpack,
    )
    if placement.frames is not None:
        return send(order, ListSource(placement.frames, encoded=True))
    return send(order, ListSource(items))


async def _await_batch(batch: Batch) -> list[Any]:
    try:
        values: list[Any] = await batch
    except asyncio.CancelledError:
        batch.cancel()  # What has not begun is not begun; what runs is finished unobserved.
        raise
    return values


# ---- in the caller ---------------------------------------------------------------------------------------------------


async def _map_here(
    func: Callable[[Any], Any],
    items: Sequence[Any],
    concurrency: int,
    in_flight: int,
    policy: RetryPolicy,
    timeout: float | None,
) -> list[Any]:
    places = asyncio.Semaphore(in_flight)

    async def batch(start: int) -> list[Any]:
        async with places:
            part = items[start : start + concurrency]
            return await asyncio.gather(*(_call_here(func, item, policy, timeout) for item in part))

    # Not a TaskGroup: after the first error the other items run on, as they always did.
    parts = await asyncio.gather(*(batch(start) for start in range(0, len(items), concurrency)))
    return [value for part in parts for value in part]


async def _call_here(
    func: Callable[[Any], Any | Awaitable[Any]], item: Any, policy: RetryPolicy, timeout: float | None
) -> Any:
    run = 0
    while True:
        run += 1
        try:
            async with asyncio.timeout(timeout) as limit:
                value = func(item)
                return await value if inspect.isawaitable(value) else value
        except Exception as error:
            shown: Exception = error
            if isinstance(error, TimeoutError) and limit.expired():
                shown = ItemTimeoutError(f"the item ran longer than its limit of {timeout:g} s")
            wait = policy.wait_after(run, shown)
            if wait is None:
                if shown is error:
                    raise
                raise shown from error
        await asyncio.sleep(wait)


# ---- what is known ---------------------------------------------------------------------------------------------------


class Account:
    """One call's line in the report."""

    def __init__(
        self,
        call: str,
        func: Callable[..., Any],
        placement: Placement,
        items: int,
        shown: Callable[..., Any] | None = None,
    ) -> None:
        self.call = call
        self.func = name_of(shown or func)
        self.placement = placement
        self.items = items
        self.batch: Batch | None = None
        self.failed = False
        self.began = time.perf_counter()

    def close(self) -> None:
        progress = self.batch.progress() if self.batch else None
        calls().record(
            CallRecord(
                call=self.call,
                func=self.func,
                where=self.placement.where,
                reason=self.placement.reason,
                items=self.items,
                seconds=time.perf_counter() - self.began,
                envelopes=progress.envelopes if progress else 0,
                retries=progress.retries if progress else 0,
                failed=self.failed,
            )
        )


def state() -> Any:
    """This deployment's Redis, for the facades' own small records under ``graft:compat:…``."""
    return shared()


def function_figures(name: str | None = None) -> dict[str, dict[str, float]]:
    """Per callable, from the workers: ``items``, ``seconds``, ``errors``, ``last``; {} without a broker.

    With *name* (``module:qualname``) only for that one.
    """
    from graft.tasks.monitoring import function_stats

    if is_local():
        return {}
    try:
        known = function_stats.read(name)
    except (redis.RedisError, OSError) as error:
        _warn_once(f"the figures of {settings().broker_name} cannot be read", error)
        return {}
    return {
        name: {"items": one.items, "seconds": one.seconds, "errors": one.errors, "last": one.last}
        for name, one in known.items()
    }


_warned: set[str] = set()


def _warn_once(what: str, error: Exception) -> None:
    logger.log(logging.DEBUG if what in _warned else logging.WARNING, "%s: %s", what, error)
    _warned.add(what)


def worker_figures() -> list[dict[str, Any]]:
    """The live workers as ``distribute_tasks`` takes them.

    ``id``, ``load`` (running and waiting messages by capacity) and ``capacity`` (pool processes).
    """
    from graft.tasks.monitoring.worker_registry import workers

    return [
        {
            "id": worker.name,
            "load": (worker.busy + worker.waiting) / max(worker.processes, 1),
            "capacity": worker.processes,
        }
        for worker in workers()
    ]


def worker_memory() -> dict[str, int]:
    """Resident bytes of each live worker with its pool processes, by node name; {} without a broker."""
    from graft.tasks.monitoring.worker_registry import workers

    if is_local():
        return {}
    try:
        return {worker.name: worker.memory for worker in workers()}
    except (redis.RedisError, OSError) as error:
        logger.debug("the workers' memory cannot be read: %s", error)
        return {}


ASK_EVERY: Final = 1.0  # Seconds.


def resize_workers(group: str, processes: int, prefetch: int | None = None, timeout: float = 5.0) -> dict[str, int]:
    """Bring the pool of every worker of *group* (the part of its name before ``@``) to exactly *processes*.

    Blocks until they answer. Worker name -> processes.

    Raises:
        TaskQueueError: no worker of that group is alive, or none answered within *timeout* seconds.
    """
    from graft.config.deployment import app
    from graft.tasks.monitoring.worker_registry import workers

    names = [worker.name for worker in workers() if worker.name.partition("@")[0] == group]
    if not names:
        raise TaskQueueError(
            f"no worker named {group}@… is alive; start one with: celery -A graft worker -n {group}@%h"
        )
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
