"""The pool ``direct``, whose processes take their messages from Redis themselves: all that holds for prefork, and more.

The other tests here run with it as well, and with Celery's own pool by ``TESTED_POOL=prefork pytest tests/hardened``.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter

import psutil
import pytest

from tests.stack import wait_until

OUTCOME = """
def outcome(result, timeout=60):
    try:
        return result.get(timeout=timeout)
    except BaseException as error:
        return type(error).__name__
"""
LEARN = "from celery import group\ngroup([write.s('quick') for _ in range(200)])().get(timeout=60)\n"


@pytest.fixture
def direct(shop):
    """The project with a worker of two processes, and that worker."""
    return shop, shop.worker(pool="direct", GRAFT_VISIBILITY_TIMEOUT="60")


def processes(worker):
    return psutil.Process(worker.pid).children()


def ask(shop, command):
    """What the one worker answers to an inspect *command*."""
    return shop.run(f"print((app.control.inspect(timeout=5).{command}() or {{}})['worker@test'])")


def test_tasks_that_harm_their_process_harm_nobody_else(direct):
    shop, _ = direct
    harm = {
        "kill": "PoisonedError", "hang": "TimeLimitExceeded", "leave": "ProcessExitError", "reject_twice": "done",
        "exhaust": "OutOfMemoryError", "unencodable": "EncodeError", "kill_acked_early": "WorkerLostError",
    }  # fmt: skip
    found = shop.run(f"{OUTCOME}\nsent = [task.delay() for task in ({', '.join(harm)})]\nprint(*map(outcome, sent))")
    assert found.split() == list(harm.values())
    assert shop.lines()["kill"] == 3
    assert shop.lines()["kill_acked_early"] == 1
    assert shop.run(f"{OUTCOME}\nprint(outcome(write.delay('alive')))") == "alive"
    with shop.redis() as client:
        wait_until(lambda: not client.hlen("graft:unacked"), what="everything to be settled")


def test_what_waits_behind_long_tasks_goes_back_and_results_before_them_do_not_wait(direct):
    """Processes take several quick tasks at a time; the long ones are among those."""
    shop, _ = direct
    code = (
        f"{LEARN}results = group([*(write.s(str(n)) for n in range(20)), slow.s(300.0), slow.s(300.0),"
        " *(write.s(str(n)) for n in range(20, 60))])()\n"
        "print(len([result.get(timeout=30) for result in results[:20]]))"
    )
    assert shop.run(code) == "20"
    wait_until(lambda: shop.lines()["slow begins"] == 2, what="both processes to be taken")
    with shop.redis() as client:
        wait_until(lambda: client.hlen("graft:unacked") == 2, what="them to hold what they run, and nothing else")
        assert client.llen("celery") == 260 - sum(shop.lines()[name] for name in {"quick", *map(str, range(60))})


def test_quick_tasks_pass_by_one_long_one(direct):
    shop, _ = direct
    code = (
        f"{LEARN}results = group([*(write.s(str(n)) for n in range(20)), slow.s(20.0),"
        " *(write.s(str(n)) for n in range(20, 60))])()\n"
        "quick = [result for n, result in enumerate(results) if n != 20]\n"
        "print(len([result.get(timeout=15) for result in quick]), results[20].ready())"
    )
    assert shop.run(code) == "60 False"


def test_what_is_not_ordinary_is_seen_by_the_main_process(direct):
    shop, _ = direct
    code = f"""{OUTCOME}
later = write.apply_async(("later",), countdown=2)
early = later.ready()
expired = write.apply_async(("expired",), countdown=0.5, expires=0.1)
revoked = write.apply_async(("revoked",), countdown=1.5)
revoked.revoke()
print(early, outcome(later), outcome(expired), outcome(revoked))
app.control.rate_limit("tests.projects.shop.tasks.write", "10/s", reply=True, timeout=5)
sent = [write.delay("limited") for _ in range(30)]
sent[0].get(timeout=30)
waiting = len(app.control.inspect(timeout=5).reserved()["worker@test"])
print(len([result.get(timeout=30) for result in sent]), waiting <= 2)
"""
    assert shop.run(code).split("\n") == ["False later TaskRevokedError TaskRevokedError", "30 True"]
    assert shop.lines() == {"later": 1, "limited": 30}


def test_a_run_that_lasts_can_be_inspected_limited_and_ended(direct):
    shop, worker = direct
    code = f"""{OUTCOME}
sent = slow.delay(60.0)
limited = slow.apply_async((60.0,), soft_time_limit=1)
print(outcome(limited))
(active,) = app.control.inspect(timeout=5).active()["worker@test"]
print(active["id"] == sent.id, active["time_start"] is not None)
app.control.revoke(sent.id, terminate=True)
print(outcome(sent))
"""
    assert shop.run(code).split() == ["SoftTimeLimitExceeded", "True", "True", "TaskRevokedError"]
    wait_until(lambda: len(processes(worker)) == 2, what="the process to be replaced")
    assert shop.run(f"{OUTCOME}\nprint(outcome(write.delay('alive')))") == "alive"


def test_who_listens_to_events_hears_all_of_them_though_processes_take_messages_themselves(direct):
    shop, _ = direct
    code = f"""{OUTCOME}
import threading
heard = {{}}
def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline: time.sleep(0.02)
def note(event):
    heard.setdefault(event.get("uuid"), []).append(event)
def listen():
    with app.connection_for_read() as connection:
        app.events.Receiver(connection, handlers={{"*": note}}).capture(limit=None)
threading.Thread(target=listen, daemon=True).start()
until(lambda: heard)  # The worker's own heartbeat.
app.control.enable_events(reply=True, timeout=5)
began = time.time()
sent = [*(write.delay(str(n)) for n in range(5)), fail.delay("x"), twice.delay("t"), slow.delay(2.0)]
for each in sent: outcome(each)
ends = "task-succeeded", "task-failed"
until(lambda: all(any(event["type"] in ends for event in heard.get(each.id, ())) for each in sent))
for each in sent[4:]:
    events = sorted(heard[each.id], key=lambda event: event["timestamp"])
    print(*(event["type"].removeprefix("task-") for event in events))
first = {{event["type"]: event for event in heard[sent[0].id]}}
print(first["task-received"]["name"], first["task-received"]["args"], first["task-succeeded"]["result"])
print(all(began <= event["timestamp"] <= time.time() for event in heard[sent[0].id]))
"""
    assert shop.run(code).split("\n") == [
        "received started succeeded",
        "received started failed",
        "received started retried received started succeeded",
        "received started succeeded",
        "tests.projects.shop.tasks.write ('0',) '0'",
        "True",
    ]
    log = (shop.folder / "worker.log").read_text()
    assert len(re.findall(r"ForkPoolWorker-\d+\] Task tests.projects.shop.tasks.write.*received", log)) == 5


def test_results_are_stored_though_redis_forgets_the_scripts(shop):
    key = {"GRAFT_SIGNING_KEY": "k" * 32}
    shop.worker(pool="direct", **key)
    code = f"""{OUTCOME}
import redis
client = redis.Redis.from_url(app.conf.broker_url)
def forgotten(call):
    client.script_flush()
    return call()
print([forgotten(lambda: outcome(write.delay("plain"))) for _ in range(3)])
print([forgotten(lambda: graft.submit(len, ["ab"]).collect(timeout=30)) for _ in range(3)])
"""
    assert shop.run(code, **key).split("\n") == [str(["plain"] * 3), str([[2]] * 3)]
    assert shop.lines() == {"plain": 3}
    with shop.redis() as client:
        wait_until(lambda: not client.hlen("graft:unacked"), what="everything to be settled")


def test_what_a_stopped_process_has_taken_is_taken_back(direct):
    """It waits for messages when it is stopped, so Redis gives it the first of those that come."""
    shop, worker = direct
    stopped, _ = processes(worker)
    code = (
        f"import psutil\n{LEARN}psutil.Process({stopped.pid}).suspend()\n"
        "print(len(group([write.s('all') for _ in range(100)])().get(timeout=60)))\n"
        f"psutil.Process({stopped.pid}).resume()\n"
        "print(len(group([write.s('after') for _ in range(100)])().get(timeout=60)))"
    )
    assert shop.run(code).split() == ["100", "100"]
    with shop.redis() as client:
        wait_until(lambda: not client.hlen("graft:unacked"), what="everything to be settled")
    assert shop.lines()["all"] == shop.lines()["after"] == 100


def test_nothing_is_lost_with_processes_that_are_killed_all_the_time(direct):
    shop, worker = direct
    code = "from celery import group\nprint(len(group([slow.s(0.05) for _ in range(200)])().get(timeout=120)))"
    killer = os.fork()
    if not killer:
        for _ in range(12):
            time.sleep(0.5)
            for process in processes(worker)[:1]:
                process.send_signal(signal.SIGKILL)
        os._exit(0)
    try:
        assert shop.run(code, timeout=150) == "200"
    finally:
        os.waitpid(killer, 0)
    assert shop.letters() == []
    with shop.redis() as client:
        wait_until(lambda: not client.hlen("graft:unacked"), what="everything to be settled")
    counts = Counter(shop.lines())
    assert counts["slow ends"] >= 200
    assert counts["slow begins"] - 200 <= 12  # At most one run for each process that was killed.


def test_a_queue_that_is_read_no_more_is_left_alone_and_the_most_urgent_goes_first(direct):
    shop, _ = direct
    code = """
app.control.cancel_consumer("celery", reply=True, timeout=5)
time.sleep(0.5)  # A process that waits may take one more, and gives it back.
sent = [write.apply_async((str(n),), priority=n) for n in (7, 3, 9, 0, 5)]
time.sleep(2)
print(any(result.ready() for result in sent))
app.control.pool_shrink(1, reply=True, timeout=5)
time.sleep(2)
app.control.add_consumer("celery", reply=True, timeout=5)
print(*(result.get(timeout=30) for result in sent))
"""
    assert shop.run(code).split("\n") == ["False", "7 3 9 0 5"]
    assert shop.ledger.read_text().split() == ["0", "3", "5", "7", "9"]


def test_a_worker_counts_what_its_processes_run(direct):
    shop, _ = direct
    shop.run(LEARN)
    wait_until(lambda: "200" in ask(shop, "stats").partition("'total'")[2][:80], what="the runs to be counted")
