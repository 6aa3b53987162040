"""Tasks by name: find one, send it, and wait for results.

Celery's own ``send_task`` subscribes to each result, and its ``get`` shares one subscriber between threads: a caller
that never asks, or several that do, make it grow or fail. Nothing is subscribed to here; a caller that waits polls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

import redis
from celery.states import READY_STATES
from kombu.exceptions import OperationalError

from graft.config import redis_clock
from graft.config.deployment import app, settings
from graft.tasks.errors import BrokerUnavailable, ResultTimeout
from graft.tasks.messages.message_format import SENT_AT
from graft.tasks.worker_runtime import in_worker

UNREACHABLE: Final = (OperationalError, redis.RedisError, OSError)
AT_ONCE: Final = 500  # Results read in one round trip.
POLL_FIRST, POLL_LATER = 0.005, 0.1  # Seconds between two polls.


def find(name: str, celery: Any = None) -> Any:
    """The task registered under *name*.

    Raises:
        ValueError: there is none.
    """
    celery = celery or app()
    celery.loader.import_default_modules()
    task = celery.tasks.get(name)
    if task is None:
        raise ValueError(f"Task {name} not found")
    return task


def send(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, celery: Any = None, **options: Any
) -> str:
    """Send a message for the task *name* where its route leads; its id, ``task_id`` unless made here.

    Args:
        options: as ``apply_async`` has them: ``queue``, ``priority`` (the broker's), ``countdown``, ``eta`` …

    Raises:
        BrokerUnavailable: the broker did not take it.
    """
    celery = celery or app()
    task_id = options.pop("task_id", None) or str(uuid4())
    message_options = {key: options.pop(key) for key in ("countdown", "eta", "shadow", "argsrepr") if key in options}
    message = celery.amqp.create_task_message(
        task_id, name, tuple(args), dict(kwargs or {}), root_id=task_id, **message_options
    )
    route = celery.amqp.router.route(dict(options), name, args, kwargs)
    try:
        with celery.producer_or_acquire() as producer:
            celery.amqp.send_task_message(producer, name, message, headers={SENT_AT: redis_clock.now()}, **route)
    except UNREACHABLE as error:
        raise BrokerUnavailable(
            f"{celery.connection_for_write().as_uri()} did not take the task {name}: {error}"
        ) from error
    return task_id


def wait(ids: Sequence[str], timeout: float | None = None, celery: Any = None) -> None:
    """Return when every one of *ids* has ended. Blocks its thread.

    Raises:
        ResultTimeout: not all had within *timeout* seconds.
        BrokerUnavailable: the result backend has not answered for ``outage_grace`` seconds.
        RuntimeError: called inside a task.
    """
    if in_worker():
        raise RuntimeError("a task must not wait for tasks: with every worker waiting, none is left to run them")
    celery = celery or app()
    began = answered = time.monotonic()
    left, pause = list(ids), POLL_FIRST
    while True:
        try:
            ended = _ended(left[:AT_ONCE], celery)
            answered = time.monotonic()
        except UNREACHABLE as error:
            ended = set()
            if time.monotonic() - answered > settings().outage_grace:
                raise BrokerUnavailable(f"the result backend does not answer: {error}") from error
        left = [task_id for task_id in left if task_id not in ended]
        if not left:
            return
        if timeout is not None and time.monotonic() - began >= timeout:
            raise ResultTimeout(f"{len(left)} of {len(ids)} tasks had not ended after {timeout:g} s; first: {left[0]}")
        if not ended:
            time.sleep(pause)
        pause = POLL_FIRST if ended else min(pause * 1.5, POLL_LATER)


def _ended(ids: Sequence[str], celery: Any) -> set[str]:
    backend = celery.backend
    found = backend.mget([backend.get_key_for_task(task_id) for task_id in ids])
    return {
        task_id
        for task_id, payload in zip(ids, found, strict=True)
        if payload and backend.decode_result(payload)["status"] in READY_STATES
    }


def collect(ids: Sequence[str], timeout: float | None = None, celery: Any = None) -> list[Any]:
    """The results of *ids*, in their order.

    Raises:
        Exception: the first failed one's own error; and as :func:`wait`.
    """
    celery = celery or app()
    wait(ids, timeout, celery)
    results = []
    for task_id in ids:
        meta = celery.backend.get_task_meta(task_id, cache=False)
        if isinstance(meta["result"], BaseException):
            raise meta["result"]
        results.append(meta["result"])
    return results
