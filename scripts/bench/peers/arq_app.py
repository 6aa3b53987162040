"""arq: one process, one event loop."""

from __future__ import annotations

import os
from typing import Any

from arq.connections import RedisSettings

from graft.scripts.bench import work


async def nap(_: Any, item: Any) -> Any:
    return await work.nap(item)


async def anoop(_: Any, item: Any) -> Any:
    return work.noop(item)


def address() -> RedisSettings:
    return RedisSettings.from_dsn(os.environ[work.REDIS_URL])


class WorkerSettings:
    functions = (nap, anoop)
    redis_settings = address()
    max_jobs = 1_000
    queue_read_limit = 5_000
    poll_delay = 0.005
    keep_result = 60
