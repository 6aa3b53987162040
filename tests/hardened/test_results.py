"""Results of plain tasks take fewer commands, and are found wherever and whenever somebody asks."""

from __future__ import annotations

COUNTS = """
def counts():
    stats = client.info("commandstats")
    return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("subscribe", "unsubscribe", "get")}
import redis
client = redis.Redis.from_url(app.conf.broker_url)
"""


def test_a_lone_task_is_announced_and_not_looked_for(shop):
    shop.worker()
    code = f"""{COUNTS}
write.delay("warm").get(timeout=30)
time.sleep(1)
before = counts()
print(all(write.delay(str(n)).get(timeout=30) == str(n) for n in range(100)))
after = counts()
print(*(after[name] - before[name] for name in after))
"""
    right, counted = shop.run(code).split("\n")
    subscribed, unsubscribed, looked = map(int, counted.split())
    assert right == "True"
    assert subscribed == 100
    assert unsubscribed <= 10  # One for each in Celery, and a look as well.
    assert looked <= 100 + 30  # The script that stores a result looks for an earlier one.


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
