"""taskiq with Redis lists and results."""

from __future__ import annotations

import os
from typing import Any

from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from graft.scripts.bench import work

broker = ListQueueBroker(os.environ[work.REDIS_URL]).with_result_backend(
    RedisAsyncResultBackend(os.environ[work.REDIS_URL], keep_results=False)
)


@broker.task
async def noop(item: Any) -> Any:
    return work.noop(item)


@broker.task
async def anoop(item: Any) -> Any:
    return work.noop(item)


@broker.task
async def spin(item: Any) -> Any:
    """On the loop: with one worker process for each core a thread would only be in the way."""
    return work.spin(item)


@broker.task
async def nap(item: Any) -> Any:
    return await work.nap(item)


TASKS = {"noop": noop, "anoop": anoop, "spin": spin, "nap": nap}
