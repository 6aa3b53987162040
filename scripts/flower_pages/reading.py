"""Reads Redis for the pages: once a second for all viewers, and never longer than a viewer has patience.

While Redis does not answer, viewers get what was last known, and since when. Threads read, so that Flower's event loop
never waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError

from graft.config.deployment import settings
from graft.config.redis_client import why_not

FRESH: Final = 1.0  # Seconds for which one reading serves everybody, at least,
SHARE: Final = 20.0  # and so many times as long as it kept a processor busy: ten thousand queues are read less often,
LONGEST: Final = 20.0  # but within so many seconds.
PATIENCE: Final = 2.0  # Seconds after which a viewer gets what was last known; on a busy machine that takes a while.
REMEMBERED: Final = 200  # Readings; the oldest are forgotten.
THREADS: Final = 4  # Each keeps a connection: more would look like a leak of them while they are made.
USERS: Final = "give Flower `viewer` to read every page, `operator` (Redis 7) or `admin` to act (graft.config.acl)"
UNREACHABLE: Final = (redis.RedisError, OperationalError, OSError)


@dataclass(frozen=True)
class Told:
    """What was read, and when, in this machine's time; ``error`` says why it is not newer. None: nothing is known.

    ``is_old``: somebody has acted since. ``cost`` is how many seconds of a processor the reading took.
    """

    value: Any = None
    at: float = 0.0
    error: str = ""
    is_old: bool = False
    cost: float = 0.0

    def serves(self, fresh: float, share: float) -> bool:
        """Whether this can still be shown, where a reading serves for *fresh* seconds at least."""
        if self.value is None or self.error or self.is_old:
            return False
        return time.time() - self.at < serves(fresh, self.cost, share)


def serves(fresh: float, cost: float, share: float = SHARE) -> float:
    """Seconds for which what took *cost* seconds of a processor to read is shown: *fresh* at least."""
    return max(fresh, min(LONGEST, share * cost))


class Readings:
    """The latest readings of this process, by what was asked."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="graft-pages")
        self._known: OrderedDict[Hashable, Told] = OrderedDict()
        self._asked: dict[Hashable, asyncio.Future[Told]] = {}

    async def ask(self, what: Hashable, read: Callable[[], Any], *, fresh: float = FRESH, share: float = SHARE) -> Told:
        """What *read* returns, or has returned lately (``Told.serves``); the last that is known while Redis is away.

        Raises:
            LookupError, ValueError: *read* did: there is no such thing.
        """
        known = self._known.get(what, Told())
        if known.serves(fresh, share):
            return known
        asked = self._asked.get(what)
        if asked is None:
            asked = self._asked[what] = asyncio.get_running_loop().run_in_executor(self._threads, _told, read, known)
            asked.add_done_callback(lambda done: self._keep(what, done))
        await asyncio.wait({asked}, timeout=PATIENCE)
        if asked.done():
            return asked.result()
        slow = f"{settings().broker_name} has not answered in full within {PATIENCE:g} s, or Flower's machine is busy"
        return Told(known.value, known.at, slow)

    async def run(self, func: Callable[..., Any], *args: Any) -> Any:
        """Do something in a thread of Flower's own, however long it takes; viewers do not wait for it."""
        return await asyncio.get_running_loop().run_in_executor(None, func, *args)

    def forget(self) -> None:
        """Read everything again when it is next asked for; while Redis is away, what was known still is."""
        self._known = OrderedDict((what, replace(told, is_old=True)) for what, told in self._known.items())

    def _keep(self, what: Hashable, done: asyncio.Future[Told]) -> None:
        self._asked.pop(what, None)
        if done.exception() is None:
            self._known[what] = done.result()
            self._known.move_to_end(what)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)


def _told(read: Callable[[], Any], known: Told) -> Told:
    at, busy = time.time(), time.thread_time()
    try:
        return Told(read(), at, cost=time.thread_time() - busy)
    except UNREACHABLE as error:
        return Told(known.value, known.at, explain(error))


def explain(error: BaseException) -> str:
    """What a Redis that raised *error* does, and the remedy, in one line."""
    if isinstance(error, NoPermissionError):
        return f"the Redis user of CELERY_BROKER_URL may not do this: {error}; {USERS}"
    what, remedy = why_not(error)
    return f"{settings().broker_name} {what}: {error}; {remedy}"
