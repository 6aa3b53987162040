"""Limits of a project's own tasks: who may not run goes back to the queue, with its retries and its worker free."""

from __future__ import annotations

import time

import pytest

from tests.stack import wait_until

POOLS = ("prefork", "threads", "custom")
IO_LANE = {"CELERY_CUSTOM_WORKER_POOL": "graft.workers.aio_pool:TaskPool"}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("task", ["paced", "paced_async"])
def test_tasks_keep_to_a_rate_and_use_up_no_retry(shop, task, pool):
    shop.worker(pool=pool, **(IO_LANE if pool == "custom" else {}))
    code = f"""
from celery import group
print(group({task}.s("acme", n) for n in range(5)).apply_async().get(timeout=60))
print({task}.delay("another", 7).get(timeout=5))
"""
    assert shop.run(code) == "[0, 1, 2, 3, 4]\n7"
    times = sorted(float(line.split()[1]) for line in shop.lines() if line.startswith("paced"))
    assert len(times) == 6
    assert times[4] - times[0] >= 1.8  # Two, two and one, a second apart. The sixth is another's.
    assert not shop.letters()


def test_tasks_that_wait_hold_up_nobody(shop):
    """Two processes, one permit: the others run something else meanwhile."""
    shop.worker()
    code = """
waiting = [at_the_till.delay(n) for n in range(12)]
print(write.delay("alive").get(timeout=5), sum(one.ready() for one in waiting) < 12)
print(sorted(one.get(timeout=60) for one in waiting) == list(range(12)))
"""
    assert shop.run(code) == "alive True\nTrue"
    lines = sorted((float(line.split()[1]), line.split()[0]) for line in shop.lines() if line[:3] in ("in ", "out"))
    assert [what for _, what in lines] == ["in", "out"] * 12


def test_an_open_breaker_sends_tasks_back_instead_of_burning_their_retries(shop):
    shop.worker()
    down = shop.ledger.with_name("ledger.down")
    down.touch()
    shop.run("for n in range(6): ask_the_bank.apply_async((n,), task_id=f'call-{n}')")
    wait_until(lambda: shop.lines()["asked"] >= 2, what="two failures")
    time.sleep(1.0)
    assert shop.lines()["asked"] <= 4  # Without the breaker each would have been tried four times by now.
    down.unlink()
    code = "from celery.result import AsyncResult\nprint([AsyncResult(f'call-{n}').get(timeout=60) for n in range(6)])"
    assert shop.run(code) == "[0, 1, 2, 3, 4, 5]"
    assert not shop.letters()
    log = (shop.folder / "worker.log").read_text()
    assert "the breaker 'bank' has opened after ConnectionError('the bank is closed')" in log
    assert "the breaker 'bank' has closed" in log
    assert "waits for the breaker 'bank', and asks again in" in log
