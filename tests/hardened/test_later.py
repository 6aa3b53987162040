"""Plain tasks for later wait in Redis, not in a worker, and outlive whoever would have held them."""

from __future__ import annotations

import os
import signal

from tests.stack import wait_until

WAIT = 60.0
SOON = {"GRAFT_DUE_AFTER": "1"}


def test_tasks_for_later_and_retries_wait_in_redis_and_outlive_workers(shop):
    first = shop.worker(**SOON)
    redis = shop.redis()
    wait_until(lambda: redis.exists("graft:due:mover:seen"), WAIT)
    ids = shop.run(
        "from celery import group\n"
        "sent = [write.apply_async([str(n)], countdown=3) for n in range(20)]\n"
        "sent += group(write.s(f'group {n}') for n in range(5)).apply_async(countdown=3).results\n"
        "sent += [slow_to_try.delay()]\n"
        "print(' '.join(one.id for one in sent))",
        **SOON,
    ).split()
    wait_until(lambda: redis.zcard("graft:due") == 26, WAIT)
    assert redis.hlen("graft:unacked") == 0
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    shop.worker(name="second", **SOON)
    told = shop.run(f"for name in {ids!r}:\n    app.AsyncResult(name).get(timeout=30)\nprint('all')")
    assert told == "all"
    lines = shop.lines()
    assert [lines[str(n)] for n in range(20)] + [lines[f"group {n}"] for n in range(5)] == [1] * 25
    assert lines["slow_to_try"] == 2
    assert not redis.exists("graft:due", "graft:due:messages", "graft:due:counts")
