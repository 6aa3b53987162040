"""Plain tasks of which there is one call at a time under a key."""

from __future__ import annotations

import os
import signal

from tests.stack import wait_until

WAIT = 60.0
UNIQUE = "graft:unique:*"


def test_one_call_for_each_account_waits_or_runs_in_the_io_lane_too(shop):
    shop.worker(pool="custom", CELERY_CUSTOM_WORKER_POOL="graft.workers.aio_pool:TaskPool")
    check_accounts(shop)


def check_accounts(shop):
    told = shop.run(
        "calls = [settle.delay('a', number) for number in range(3)] + [settle.delay('b', 9)]\n"
        "last = settle.apply_async(['a', 7], if_running='drop')\n"
        "other = settle.apply_async(['a', 8], unique='by itself')\n"
        "print(len({call.id for call in calls[:3]}), [call.get(timeout=30) for call in calls], other.get(timeout=30))\n"
        "print(last.state, 'has the unique key' in str(last.result))\n"
        "print(settle.delay('a', 4).get(timeout=30))"
    )
    assert told.splitlines() == ["1 ['a 0', 'a 0', 'a 0', 'b 9'] a 8", "REVOKED True", "a 4"]
    assert sorted(line for line in shop.lines().elements()) == ["a 0", "a 4", "a 8", "b 9"]
    assert not [*shop.redis().scan_iter(UNIQUE)]


def test_one_call_for_each_account_waits_or_runs_and_every_end_frees_its_key(shop):
    shop.worker()
    check_accounts(shop)
    told = shop.run(
        "from celery import chord\n"
        "settle.apply_async(['c', 1], ignore_result=True)\n"
        "tries.apply_async(['d'], unique='d')\n"
        "again = tries.apply_async(['d'], unique='d')\n"
        "print(again.get(timeout=30))\n"  # It keeps its key while it is retried.
        "one = slow.apply_async([2], unique='s')\n"
        "total = chord([slow.s(0), slow.s(0.1).set(unique='s')])(write_all.s())\n"
        "try:\n    total.get(timeout=30)\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "one.get(timeout=30)\n"
        "try:\n    fail.apply_async(['x'], unique='f').get(timeout=30)\nexcept LookupError:\n    pass\n"
        "try:\n    hang.apply_async(unique='h').get(timeout=60)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
        "try:\n    settle.apply_async(['e', 1], if_running='wait')\nexcept ValueError as error:\n    print(error)\n"
        "try:\n    misnamed.delay()\nexcept ValueError as error:\n    print(error)\n"
    )
    assert told.splitlines() == [
        "done",
        "TaskRevokedError",  # Of the part that was dropped: its id was the chord's.
        "TimeLimitExceeded",
        "if_running='wait' must be one of 'attach', 'drop', 'replace'",
        "graft_unique='customer' of tests.projects.shop.tasks.misnamed must name its parameters (account), or be True",
    ]
    assert shop.lines()["tries"] == 3
    wait_until(lambda: not [*shop.redis().scan_iter(UNIQUE)], WAIT)


def test_a_killed_worker_keeps_the_key_until_its_call_has_run(shop):
    lease = {"GRAFT_VISIBILITY_TIMEOUT": "3"}
    worker = shop.worker(**lease)
    shop.run("slow.apply_async([3], unique='s', unique_for=30)")
    wait_until(lambda: shop.lines()["slow begins"] == 1, WAIT)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    sent = "print(slow.apply_async([3], unique='s').id == '{}')"
    (key,) = shop.redis().scan_iter(UNIQUE)
    holder = shop.redis().hget(key, "id").decode()
    assert shop.run(sent.format(holder)) == "True"
    shop.worker(name="second", **lease)
    assert shop.run(f"app.AsyncResult('{holder}').get(timeout=60)\n{sent.format(holder)}") == "True"
    assert shop.lines()["slow begins"] == 2
    assert 0 < shop.redis().pttl(key) <= 30_000


def test_results_that_are_kept_elsewhere_free_the_key_too(shop):
    (shop.folder / "results").mkdir()
    elsewhere = {"SHOP_RESULTS": f"file://{shop.folder}/results"}
    shop.worker(**elsewhere)
    assert shop.run("print(settle.delay('a', 1).get(timeout=30), settle.delay('a', 2).get(timeout=30))", **elsewhere)
    assert shop.lines() == {"a 1": 1, "a 2": 1}
    wait_until(lambda: not [*shop.redis().scan_iter(UNIQUE)], WAIT)
