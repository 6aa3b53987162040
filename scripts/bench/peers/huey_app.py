"""huey on Redis; results are announced (``notify_result``) instead of looked for."""

from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey

from graft.scripts.bench import work

huey = RedisHuey("bench", url=os.environ[work.REDIS_URL], notify_result=True)


@huey.task()
def noop(item: Any) -> Any:
    return work.noop(item)


@huey.task()
def spin(item: Any) -> Any:
    return work.spin(item)


TASKS = {"noop": noop, "spin": spin}
