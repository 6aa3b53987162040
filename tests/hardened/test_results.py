"""Results of plain tasks take fewer commands, and are found wherever and whenever somebody asks."""

from __future__ import annotations

import pytest

COUNTS = """
def counts():
    stats = client.info("commandstats")
    return [stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("subscribe", "unsubscribe", "get", "mget")]
def counted(call):
    before = counts()
    call()
    print(*(now - then for now, then in zip(counts(), before)))
import redis
from celery import group
client = redis.Redis.from_url(app.conf.broker_url)
def lone():
    print(all(write.delay(str(n)).get(timeout=30) == str(n) for n in range(100)))
def many():
    print(group([write.s(str(n)) for n in range(300)]).apply_async().get(timeout=60) == list(map(str, range(300))))
"""


def test_one_subscription_is_enough_for_all_results_of_our_workers(shop):
    shop.worker()
    code = f"""{COUNTS}
write.delay("warm").get(timeout=30)
counted(lambda: (lone(), many()))
"""
    lone, many, counted = shop.run(code).split("\n")
    subscribed, unsubscribed, _, looked = map(int, counted.split())
    assert [lone, many] == ["True", "True"]
    assert subscribed <= 2  # Celery: 400, and as many looks. What our workers announce shows with the first.
    assert unsubscribed <= 1
    assert looked <= 400 + 30  # The script that stores a result looks for an earlier one.


@pytest.mark.parametrize("stock", [True, False], ids=["alone", "beside ours"])
def test_results_of_workers_that_announce_them_as_celery_does_come_as_well(shop, stock):
    shop.worker(stock=True)
    if not stock:
        shop.worker(name="ours")
    code = f"""{COUNTS}
counted(lambda: (lone(), many(), lone()))
"""
    *right, counted = shop.run(code).split("\n")
    assert right == ["True"] * 3
    if stock:
        assert int(counted.split()[0]) >= 200  # The lone ones each, those of the group together.


def test_a_result_is_found_once_its_answer_was_lost(shop):
    """Nothing is subscribed to but the thread's channel; its messages are lost with the connection."""
    shop.worker()
    code = f"""{COUNTS}
write.delay("warm").get(timeout=30), write.delay("warm").get(timeout=30)
early = [write.delay(str(n)) for n in range(40)]
late = [write.apply_async((str(n),), countdown=2) for n in range(40)]
client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
print(*[each.get(timeout=30) for each in early] == [each.get(timeout=30) for each in late])
"""
    code = code.replace("print(*[", "print([")
    assert shop.run(code) == "True"


def test_what_nobody_waits_for_does_not_pile_up_in_redis(shop):
    """A caller that never asks is not sent its answers for ever, and is answered again once it does."""
    shop.worker("-c", "4")
    code = f"""{COUNTS}
write.delay("warm").get(timeout=30), write.delay("warm").get(timeout=30)
for n in range(1500):
    at_once.delay("x")
print(client.pubsub_channels("*replies*"))
print(at_once.delay("y").get(timeout=60), at_once.delay("z").get(timeout=60))
print(len(client.pubsub_channels("*replies*")), len(client.pubsub_channels("*task-meta*")) < 60)
"""
    channels, answers, listening = shop.run(code).split("\n")
    assert (channels, answers, listening) == ("[]", "y z", "1 True")


def test_a_large_result_is_fetched_by_whoever_asks_for_it(shop):
    shop.worker()
    code = f"""{COUNTS}
text = "a" * 200_000
print([at_once.delay(text).get(timeout=30) == text for _ in range(3)])
kept = at_once.delay(text)
time.sleep(1)
print(kept.get(timeout=30) == text)
"""
    assert shop.run(code) == "[True, True, True]\nTrue"


def test_another_thread_and_another_object_wait_for_a_result_too(shop):
    shop.worker()
    code = f"""{COUNTS}
import threading
write.delay("warm").get(timeout=30), write.delay("warm").get(timeout=30)
sent = write.apply_async(("late",), countdown=1)
heard = []
thread = threading.Thread(target=lambda: heard.append(app.AsyncResult(sent.id).get(timeout=30)))
thread.start()
print(app.AsyncResult(sent.id).get(timeout=30), sent.get(timeout=30))
thread.join()
print(*heard)
"""
    assert shop.run(code).split() == ["late", "late", "late"]


def test_a_result_is_found_by_id_late_without_patience_and_after_a_lost_connection(shop):
    shop.worker()
    task_id = shop.run("result = write.delay('here'); result.get(timeout=30); print(result.id)")
    code = f"""{COUNTS}
print(app.AsyncResult("{task_id}").get(timeout=10), app.AsyncResult("{task_id}").get(timeout=0))
early = write.delay("early")
time.sleep(2)
print(early.get(timeout=0.01))
late = write.apply_async(("late",), countdown=2)
client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
print(late.get(timeout=30))
missed = write.delay("missed")
client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
time.sleep(2)
print(missed.get(timeout=10))
"""
    assert shop.run(code).split() == ["here", "here", "early", "late", "missed"]
