"""dramatiq with its Redis broker and results, as its manual has them."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from graft.scripts.bench import work

broker = RedisBroker(url=os.environ[work.REDIS_URL])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ[work.REDIS_URL])))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(item: Any) -> Any:
    return work.noop(item)


@dramatiq.actor(store_results=True)
def spin(item: Any) -> Any:
    return work.spin(item)


ACTORS = {"noop": noop, "spin": spin}
