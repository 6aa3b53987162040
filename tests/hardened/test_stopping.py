"""The pools that a project's workers may have, and what becomes of its tasks when they stop."""

from __future__ import annotations

import signal

import pytest

from tests.stack import TESTED_POOL, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.worker]

IO_LANE = {"CELERY_CUSTOM_WORKER_POOL": "graft.workers.aio_pool:TaskPool", "GRAFT_IO_THREADS": "2"}


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "celery.concurrency.gevent:TaskPool"])
def test_green_pools_are_refused_by_name(shop, pool):
    told = shop.run(f"try: app.WorkController(pool={pool!r})\nexcept SystemExit as error: print(error)")
    assert pool in told
    assert "-P custom" in told


@pytest.mark.parametrize("pool", ["prefork", "threads", "custom"])
def test_what_has_not_begun_goes_back_while_the_rest_is_finished(shop, pool):
    """Stock Celery gives it back at the end of the process; its threads begin all of it (10 of 12 after SIGTERM)."""
    environ = {"GRAFT_VISIBILITY_TIMEOUT": "60", **(IO_LANE if pool == "custom" else {})}
    worker = shop.worker("--prefetch-multiplier", "6", pool=pool, **environ)
    held = "slow.apply_async((0.0,), countdown=600)\nfor _ in range(12): slow.delay(8.0)"
    shop.run(held, GRAFT_DUE_AFTER="0")  # What waits for its time is held by the worker, as by Celery's.
    is_direct = pool == "prefork" and TESTED_POOL == "direct"  # It takes what it runs, and what is not due yet.
    left = 10 if is_direct else 0
    with shop.redis() as client:
        wait_until(lambda: shop.lines()["slow begins"] == 2 and client.llen("celery") == left, what="all to be taken")
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: client.llen("celery") == 11, what="the others to be back")
        assert not shop.lines()["slow ends"]
        assert worker.wait(60) == 0
        assert client.llen("celery") == 11
        assert shop.lines() == {"slow begins": 2, "slow ends": 2}


def test_a_cold_stop_begins_nothing_more(shop):
    """A plain function that waited for its turn on the io lane began in the place of one that was cancelled."""
    worker = shop.worker("--prefetch-multiplier", "6", pool="custom", GRAFT_VISIBILITY_TIMEOUT="60", **IO_LANE)
    shop.run("for _ in range(12): slow.delay(300.0)")
    with shop.redis() as client:
        wait_until(lambda: shop.lines()["slow begins"] == 2 and not client.llen("celery"), what="all to be taken")
        worker.send_signal(signal.SIGQUIT)
        worker.wait(60)
        assert client.llen("celery") == 12
        assert shop.lines() == {"slow begins": 2}


def test_a_soft_shutdown_longer_than_the_lease_runs_nothing_twice_and_ends_with_the_last_task(shop):
    environ = {"GRAFT_VISIBILITY_TIMEOUT": "3", "SHOP_SOFT": "300"}
    first = shop.worker(name="first", **environ)
    shop.run("slow.delay(8.0); slow.delay(8.0)")
    wait_until(lambda: shop.lines()["slow begins"] == 2, what="both to begin")
    second = shop.worker(name="second", **environ)
    first.send_signal(signal.SIGQUIT)
    first.wait(60)
    shop.stop(second)
    assert shop.lines() == {"slow begins": 2, "slow ends": 2}
