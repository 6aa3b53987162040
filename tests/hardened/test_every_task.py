"""Every task of a hardened app is guarded, whatever its class, and in every pool."""

from __future__ import annotations

import json

import pytest

from tests.stack import wait_until

WAIT = 60.0
POOLS = ("prefork", "threads", "solo")
OUTCOME = """
def outcome(task, *args, timeout=30):
    try:
        return task.delay(*args).get(timeout=timeout)
    except BaseException as error:
        return type(error).__name__
"""


def outcome(shop, call, **options):
    return shop.run(f"{OUTCOME}\nprint(outcome({call}))", **options)


@pytest.mark.parametrize("task", ["kill", "wrapped_kill"])
def test_a_task_that_kills_its_process_runs_three_times_and_becomes_a_dead_letter(shop, task):
    shop.worker()
    assert outcome(shop, task) == "PoisonedError"
    assert shop.lines()["kill"] == 3
    assert shop.letters() == [("poisoned", task)]
    assert outcome(shop, "write, 'alive'") == "alive"


def test_negative_control_in_stock_celery_it_runs_on_and_on(shop):
    shop.worker(stock=True, SHOP_LATE="1")
    shop.run("kill.delay()", stock=True)
    wait_until(lambda: shop.lines()["kill"] >= 5, WAIT)
    assert not shop.redis().exists("graft:dead-letters")


def test_its_own_run_limit_counts(shop):
    shop.worker()
    assert outcome(shop, "kill_once") == "PoisonedError"
    assert shop.lines()["kill_once"] == 1


def test_a_memory_error_ends_the_task_and_no_worker(shop):
    worker = shop.worker()
    assert [outcome(shop, "exhaust") for _ in range(3)] == ["OutOfMemoryError"] * 3
    assert worker.poll() is None
    assert shop.lines()["exhaust"] == 3


def test_negative_control_in_stock_celery_it_ends_the_worker(shop):
    worker = shop.worker(stock=True)
    shop.run("exhaust.delay()", stock=True)
    wait_until(lambda: worker.poll() is not None, WAIT, "the worker to end")


@pytest.mark.parametrize("pool", POOLS)
def test_what_would_end_the_process_is_an_error_of_the_task(shop, pool):
    worker = shop.worker(pool=pool)
    assert outcome(shop, "leave") == "ProcessExitError"
    assert outcome(shop, "exhaust") == "OutOfMemoryError"
    assert outcome(shop, "write, 'alive'") == "alive"
    assert worker.poll() is None


def test_failures_leave_letters_by_rule_and_by_option(shop):
    shop.worker()
    names = ("fail, 'once'", "fail_on_and_on", "fail_with_letter", "hang", "unencodable", "kill_acked_early")
    found = [outcome(shop, name) for name in names]
    assert found == ["LookupError"] * 3 + ["TimeLimitExceeded", "EncodeError", "WorkerLostError"]
    assert shop.lines()["fail_on_and_on"] == 3
    assert shop.letters() == [
        ("lost", "kill_acked_early"),
        ("retries_exhausted", "fail_on_and_on"),
        ("retries_exhausted", "fail_with_letter"),
        ("time_limit", "hang"),
    ]
    # Nobody asked for these: they are kept all the same, and alarm nobody.
    lines = shop.celery("dead-letters", "list", "--reason", "failed", "--json").splitlines()
    causes = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(cause["function"].rpartition(".")[2] for cause in causes) == ["fail", "unencodable"]
    told = shop.run(
        "from graft.tasks.results import call_status\nsent = fail.delay('again')\n"
        "try:\n    sent.get(timeout=30)\nexcept LookupError:\n    print(call_status.status_of(sent.id))"
    )
    assert told == "failed"


def test_every_failure_leaves_a_letter_where_the_deployment_asks_for_it(shop):
    shop.worker(GRAFT_FAILURE_LETTERS="all")
    assert [outcome(shop, name) for name in ("fail, 'once'", "unencodable")] == ["LookupError", "EncodeError"]
    assert shop.letters() == [("retries_exhausted", "fail"), ("retries_exhausted", "unencodable")]


def test_a_task_that_gives_its_message_back_is_not_taken_for_a_killer(shop):
    shop.worker()
    assert outcome(shop, "reject_twice") == "done"
    assert shop.lines()["reject_twice"] == 6
    assert not shop.letters()


def test_a_plain_task_obeys_a_policy_of_ours(shop):
    worker = shop.worker()
    assert outcome(shop, "by_policy, 'ConnectionError', 5") == "at last"  # Celery's own three retries do not count.
    assert shop.lines()["by_policy:4/6"] == 1
    assert outcome(shop, "by_policy, 'TypeError', 2") == "TypeError"  # A mistake is no outage.
    assert outcome(shop, "by_policy, 'TimeoutError', 2") == "TimeoutError"  # The policy says so.
    assert (shop.lines()["by_policy:TypeError"], shop.lines()["by_policy:TimeoutError"]) == (1, 1)
    assert outcome(shop, "for_a_while") == "ConnectionError"
    assert 1 <= shop.lines()["for_a_while"] <= 3
    shop.stop(worker)
    log = (shop.folder / "worker.log").read_text()
    assert "run 1 of 6 of tests.projects.shop.tasks.by_policy failed: ConnectionError('not yet'). It runs again" in log


def test_a_base_class_that_overrides_call_still_surrounds_its_tasks(shop):
    shop.worker()
    assert outcome(shop, "wrapped, 'inside'") == "inside"
    assert (shop.lines()["enters"], shop.lines()["leaves"]) == (1, 1)


@pytest.mark.parametrize("pool", POOLS)
def test_a_cancelled_task_does_not_run(shop, pool):
    shop.run("write.apply_async(['never'], task_id='unwanted')")
    shop.run("from graft.tasks.delivery import cancellation\ncancellation.cancel('unwanted', 60)")
    shop.worker(pool=pool)
    assert outcome(shop, "write, 'wanted'") == "wanted"
    assert shop.lines() == {"wanted": 1}
    assert shop.run("print(app.AsyncResult('unwanted').state)") == "REVOKED"


def test_the_control_command_cancels_a_plain_task(shop):
    shop.worker("-Q", "celery")
    shop.run("report.apply_async(task_id='unwanted')")
    assert "cancelled" in shop.celery("control", "graft_cancel", "unwanted")
    shop.worker("-Q", "reports", name="reader")
    wait_until(lambda: shop.run("print(app.AsyncResult('unwanted').state)") == "REVOKED", WAIT)


def test_a_replay_says_so_when_the_workers_have_the_code_that_failed(shop):
    worker = shop.worker()
    outcome(shop, "fail_with_letter")
    command = ("dead-letters", "replay", "--all", "--yes")
    assert "Note: 1 worker started before the last of these failures" in shop.celery(*command)
    wait_until(shop.letters, WAIT, "it to fail again")
    shop.stop(worker)
    shop.worker()
    assert "started before" not in shop.celery(*command)


def test_celerys_own_tasks_that_run_others_are_guarded_too(shop):
    shop.worker()
    told = shop.run("print(write.chunks([('a',), ('b',)], 1).apply_async().get(timeout=30))")
    assert told == "[['a'], ['b']]"
    told = shop.run("print(type(kill_with.map(['x']).apply_async().get(timeout=60, propagate=False)).__name__)")
    assert told == "PoisonedError"
    assert shop.lines()["kill"] == 3


def test_a_time_limit_holds_where_the_connection_is_lost_meanwhile(shop):
    shop.worker()
    shop.run("hang.apply_async(task_id='hangs', time_limit=5)")
    wait_until(lambda: shop.lines()["hang"] == 1, WAIT)
    for kind in ("normal", "pubsub"):
        shop.redis().execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    told = shop.run("print(type(app.AsyncResult('hangs').get(timeout=40, propagate=False)).__name__)")
    assert told == "TimeLimitExceeded"
    assert shop.lines()["hang"] == 1
