"""Whatever asks Redis, in however many event loops: a process has a handful of connections, and loops leave none."""

from __future__ import annotations

import ast

from tests.stack import run_python

LOOPS = """
import asyncio
import os
import threading
from urllib.parse import urlsplit

import graft
import psutil
from graft.compat.async_patterns import AsyncCache, RateLimiter, Semaphore, channel
from graft.tasks.blocking_threads import THREADS
from tests import samples

PORT = urlsplit(os.environ["CELERY_BROKER_URL"]).port
ME = psutil.Process()
peak = 0


def connections():
    found = [each for each in ME.net_connections("tcp") if each.raddr and each.raddr.port == PORT]
    return sum(each.status == "ESTABLISHED" for each in found)


async def handler(name, number):
    global peak
    cache = AsyncCache(60, name="cache")
    async with Semaphore(30, name="places"):
        await RateLimiter(10_000, name="rate").acquire()
        assert await cache.get_or_insert((name, number // 4), lambda: number // 4) == number // 4
        peak = max(peak, connections())
    assert await graft.submit(samples.square, [number]) == [number * number]


async def handlers(name):
    sender, receiver = channel(10, name=f"channel-{name}")
    await asyncio.gather(*(handler(name, number) for number in range(20)))
    async with sender, receiver:
        await sender.send(name)
        assert await receiver.recv() == name


def loops(many, round):
    threads = [threading.Thread(target=lambda n=n: asyncio.run(handlers(f"{round}-{n}"))) for n in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return connections()


print([THREADS, loops(1, 0), loops(10, 1), loops(10, 2), peak])
"""


def test_connections_are_the_processs_and_loops_leave_none(stack):
    done = run_python(stack, LOOPS, 120, env={"PYTHONWARNINGS": "error::ResourceWarning"})
    assert done.stderr == ""
    helpers, after_one, after_ten, after_twenty, peak = ast.literal_eval(done.stdout)
    # Beside the helpers: sending, hearing results, looking for workers, renewing leases. With connections of their own,
    # ten loops or two hundred handlers would have had more.
    assert max(after_one, after_ten, after_twenty, peak) <= helpers + 6
