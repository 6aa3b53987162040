"""Hardened and stock workers on one Redis and the same queues: neither gives away what the other runs."""

from __future__ import annotations

import os
import signal
import threading
import time

from graft.config.transport import channel
from tests.stack import TESTED_POOL, wait_until

WAIT = 60.0


def test_a_long_task_under_a_short_lease_runs_once(shop):
    shop.worker(GRAFT_VISIBILITY_TIMEOUT="2")
    shop.worker(name="other", GRAFT_VISIBILITY_TIMEOUT="2")
    shop.run("print(slow.delay(7).get(timeout=30))", GRAFT_VISIBILITY_TIMEOUT="2")
    assert shop.lines()["slow begins"] == 1


def test_what_a_stock_worker_runs_is_not_given_away_by_hardened_ones(shop):
    stock = shop.worker(stock=True, name="stock")
    shop.run("slow.delay(8)", stock=True)
    wait_until(lambda: shop.lines()["slow begins"] == 1, WAIT)
    shop.worker(name="hardened", GRAFT_VISIBILITY_TIMEOUT="1")
    wait_until(lambda: shop.lines()["slow ends"] == 1, WAIT)
    time.sleep(3)
    assert shop.lines()["slow begins"] == 1
    shop.stop(stock)


def test_what_a_killed_worker_ran_comes_back(shop):
    worker = shop.worker(GRAFT_VISIBILITY_TIMEOUT="2")
    shop.run("slow.apply_async([3], task_id='lost')")
    wait_until(lambda: shop.lines()["slow begins"] == 1, WAIT)
    os.killpg(worker.pid, signal.SIGKILL)
    shop.worker(name="other", GRAFT_VISIBILITY_TIMEOUT="2")
    shop.run("print(app.AsyncResult('lost').get(timeout=40))")
    assert shop.lines()["slow ends"] == 1


def test_negative_control_a_stock_worker_leaves_it_for_an_hour(shop):
    worker = shop.worker(stock=True, SHOP_LATE="1")
    shop.run("slow.delay(3)", stock=True)
    wait_until(lambda: shop.lines()["slow begins"] == 1, WAIT)
    os.killpg(worker.pid, signal.SIGKILL)
    shop.worker(stock=True, name="other", SHOP_LATE="1")
    time.sleep(8)
    assert shop.lines()["slow ends"] == 0


def test_a_record_that_a_stock_worker_left_behind_is_swept_as_stock_would(shop):
    client = shop.redis()
    shop.run("write.apply_async(['left'], acks_late=True)", stock=True)
    raw = client.rpop("celery")
    assert raw is not None
    client.hset("unacked", "tag", b'[%b, "celery", "celery"]' % raw)
    client.zadd("unacked_index", {"tag": time.time() - 3700})
    client.sadd("_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
    shop.worker()
    wait_until(lambda: shop.lines()["left"] == 1, WAIT)
    wait_until(lambda: not client.exists("unacked", "unacked_index"), WAIT)


def test_workers_are_rolled_over_forward_and_back_under_load(shop):
    sender = "for number in range(300):\n    write.delay(f'load {number}')\n    time.sleep(0.01)\nprint('sent')"
    first = shop.worker(stock=True, name="stock1")
    second = shop.worker(stock=True, name="stock2")
    sent = []
    threads = [
        threading.Thread(target=lambda stock=stock: sent.append(shop.run(sender, stock=stock)))
        for stock in (True, False)
    ]
    for thread in threads:
        thread.start()
    hardened = shop.worker(name="hardened1")
    shop.stop(first)
    other = shop.worker(name="hardened2")
    shop.stop(second)
    shop.worker(stock=True, name="stock3")
    shop.stop(hardened)
    shop.stop(other)
    for thread in threads:
        thread.join(120)
    assert sent == ["sent", "sent"]
    wait_until(lambda: len(shop.lines()) == 300, WAIT, "every message to run")
    # One of each sender. A stock worker that is stopped may forget what it has just handed to a process (Celery 5.7):
    # that runs twice, and the worker waits half a minute for the process.
    runs = shop.lines().values()
    assert min(runs) == 2
    assert sum(runs) <= 2 * 300 + 2


def longest_wait(shop):
    """Seconds for which an idle worker waits for a notice: what its next BRPOP says."""
    with shop.redis().monitor() as monitor:
        return next(
            float(each["command"].split()[-1]) for each in monitor.listen() if each["command"].startswith("BRPOP")
        )


def test_a_stock_producer_is_heard_soon_once_it_has_been_seen(shop):
    shop.worker()
    assert longest_wait(shop) == 1
    assert shop.run("print(write.delay('announced').get(timeout=30))") == "announced"
    assert longest_wait(shop) == 1
    assert shop.run("print(write.delay('by stock').get(timeout=30))", stock=True) == "by stock"
    readers = 2 if TESTED_POOL == "direct" else 1  # Each looks so much less often.
    wait_until(lambda: longest_wait(shop) == readers * channel.STOCK_POLL, 30, "every process to be told")
