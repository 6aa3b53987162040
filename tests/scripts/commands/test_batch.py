"""Batches are seen while they run, and one that is cancelled ends: for its caller too, with workers or without."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import graft
from graft.compat.worker_pool import Task, WorkerPool
from graft.scripts.commands.batch import command
from graft.tasks import codec
from graft.tasks.callables.references import refer
from graft.tasks.delivery import cancellation
from graft.tasks.errors import CancelledBatchError
from graft.tasks.messages.message_format import SENT_AT, lists
from graft.tasks.monitoring import worker_registry
from graft.tasks.queues import pause, peek, purge, under_way
from graft.tasks.sending import progress
from graft.tasks.sending.batch_sender import BatchOptions
from graft.tasks.sending.call_future import Call
from graft.tasks.sending.coalescing import CallStream
from tests import samples
from tests.stack import run_python, wait_until

pytestmark = pytest.mark.acl_role("operator")

WAIT = 60.0
QUEUE = "low"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def told(batch: Any) -> None:
    wait_until(lambda: [note for note in progress.running() if note.id == batch.id], WAIT, "the batch to be told of")


def waiting(redis: Any) -> int:
    return sum(redis.llen(key) for key in lists(QUEUE))


@pytest.fixture(scope="module")
def unread(stack: Any, redis: Any) -> Iterator[None]:
    """Have no worker read the queue."""
    pause.pause(QUEUE)
    wait_until(lambda: not readers(redis), WAIT, "the workers to obey")
    yield
    pause.resume(QUEUE)
    wait_until(lambda: readers(redis), WAIT, "the workers to be back")


@pytest.fixture
def paused(unread: None, redis: Any) -> Any:
    """A queue that no worker reads."""
    redis.delete(*lists(QUEUE))
    return redis


def readers(redis: Any) -> list[str]:
    return [worker.name for worker in worker_registry.workers(redis) if QUEUE in worker.queues]


def test_a_batch_that_runs_is_listed_and_shown_by_the_end_of_its_id(stack, redis):
    batch = graft.submit(samples.pause, range(60), batch_size=1)
    told(batch)
    (listed,) = [line for line in map(json.loads, run("list", "--json").stdout.splitlines()) if line["id"] == batch.id]
    assert (listed["function"], listed["total"], listed["queue"]) == ("tests.samples:pause", 60, "batch")
    assert not listed["cancelled"]
    assert batch.id[-6:] in run("list").stdout
    shown = run("show", batch.id[-6:]).stdout
    for part in (batch.id, "tests.samples:pause", "of 60 done", "items/s"):
        assert part in shown
    batch.cancel()


def test_an_id_that_nobody_has_is_said_to_be_unknown(redis):
    for verb in ("show", "cancel", "pause", "resume"):
        for unknown in ("nobody", "00000000-0000-0000-0000-000000000000"):
            done = run(verb, unknown)
            assert done.exit_code == 1
            assert "batch list" in done.stderr
    assert redis.zscore(cancellation.LIST, "nobody") is None


def test_nothing_is_cancelled_without_a_yes(paused):
    batch = graft.submit(samples.square, [1, 2], queue=QUEUE)
    wait_until(lambda: waiting(paused), WAIT, "the message to wait")
    assert run("cancel", batch.id).exit_code == 2
    assert not cancellation.is_cancelled(batch.id)
    assert purge.cancel(batch.id) == 1


def test_a_cancelled_batch_that_no_worker_reads_ends_at_once_and_never_runs(paused, tmp_path):
    ledger = tmp_path / "ran"
    batch = graft.submit(samples.note, [(str(ledger), str(n)) for n in range(500)], queue=QUEUE, batch_size=1)
    told(batch)
    done = run("cancel", batch.id, "--yes")
    assert done.exit_code == 0, done.output
    with pytest.raises(CancelledBatchError):
        batch.collect(WAIT)
    wait_until(batch.done, WAIT, "every item to have its outcome")
    assert batch.progress().failed == 500
    assert not waiting(paused)
    assert not peek.held(batch.id, paused)
    assert not ledger.exists()


def test_what_runs_is_finished_and_the_rest_is_cancelled(stack, redis):
    batch = graft.submit(samples.pause, range(300), batch_size=1)
    told(batch)
    wait_until(lambda: batch.progress().done >= 2, WAIT, "a few items to be done")
    assert run("cancel", batch.id[-8:], "--yes").exit_code == 0
    outcomes = list(batch.as_completed(WAIT))
    assert len(outcomes) == 300
    errors = {type(outcome.error) for outcome in outcomes if outcome.error is not None}
    assert errors == {CancelledBatchError}
    assert [outcome.value for outcome in outcomes if outcome.error is None]


def test_what_runs_is_ended_where_that_is_asked_for(stack, redis):
    batch = graft.submit(samples.sleep, [600.0] * 4, batch_size=1)
    told(batch)
    wait_until(lambda: peek.held(batch.id, redis), WAIT, "an item to run")
    done = run("cancel", batch.id[-8:], "--yes", "--running")
    assert done.exit_code == 0, done.output
    assert {type(outcome.error) for outcome in batch.as_completed(WAIT)} == {CancelledBatchError}


def test_an_endless_batch_ends_when_it_is_cancelled(stack, redis):
    batch = graft.submit(samples.pause, itertools.count(), batch_size=1)
    arrived = batch.as_completed(WAIT)
    next(arrived)
    told(batch)
    assert run("cancel", batch.id, "--yes").exit_code == 0
    assert [outcome for outcome in arrived if isinstance(outcome.error, CancelledBatchError)]


def test_a_reduced_batch_is_answered_when_it_is_cancelled(paused):
    batch = graft.submit(samples.square, range(400), reduce=sum, queue=QUEUE, batch_size=1)
    told(batch)
    assert run("cancel", batch.id, "--yes").exit_code == 0
    with pytest.raises(CancelledBatchError):
        batch.collect(WAIT)


def test_a_paused_batch_sends_nothing_more_until_it_is_resumed(stack, redis):
    items = [1.0] * 5 + [0.0] * 30
    listed, streamed, reduced = batches = [
        graft.submit(samples.sleep, items, batch_size=1, in_flight=1),
        graft.submit(samples.sleep, iter(items), batch_size=1, in_flight=1),
        graft.submit(samples.sleep, items, batch_size=1, in_flight=1, reduce=sum),
    ]
    for batch in batches:
        told(batch)

    def note(batch: Any) -> progress.BatchNote:
        return next(one for one in progress.running() if one.id == batch.id)

    for batch in batches:
        progress.pause(batch.id)
    before = []
    for batch in batches:
        done = run("pause", batch.id)
        assert done.exit_code == 0, done.output
        assert 0 < redis.ttl(progress.PAUSED + batch.id) <= progress.PAUSE_EXPIRES  # A caller that dies leaves nothing.
        before.append(note(batch))
    wait_until(lambda: all(one.progress().done == one.progress().sent for one in batches[:2]), WAIT, "what was sent")
    wait_until(lambda: note(reduced).paused_for > before[2].paused_for + 1, WAIT, "its caller to report it again")
    for batch, was in zip(batches, before, strict=True):
        now = note(batch)
        assert (now.is_paused, now.sent, was.sent < len(items)) == (True, was.sent, True)
        assert now.rate < 5  # An item takes a second.
        assert "paused" in run("show", batch.id).stdout
    assert run("resume", listed.id, "--failed").exit_code == 2  # Its caller has the errors.
    for batch in batches:
        assert run("resume", batch.id).exit_code == 0
    assert [listed.collect(WAIT), list(streamed), reduced.collect(WAIT)] == [items, items, sum(items)]
    wait_until(lambda: not redis.exists(*(progress.PAUSED + one.id for one in batches)), WAIT, "their end to be noted")


def test_tasks_of_a_pool_are_held_up_and_those_that_wait_in_redis_say_how_else(stack, redis):
    def note(name: str) -> progress.BatchNote:
        (found,) = [one for one in progress.running() if one.id == name]
        return found

    for name in (None, "pool-to-pause"):
        before = {one.id for one in progress.running()}
        with WorkerPool(1, 200, name=name) as pool:
            for number in range(100):
                pool.submit_task(Task(number, partial(samples.sleep, 0.5)))

            def bursts(before: set[str] = before) -> list[str]:  # One whose first task has ended goes on for a while.
                return [one.id for one in progress.running() if one.id not in before and one.done]

            wait_until(bursts, WAIT, "its burst to be told of")
            burst = bursts()[-1]
            done = run("pause", burst)
            if name is None:
                assert done.exit_code == 0, done.output
                wait_until(lambda: note(burst).paused_for > 2, WAIT, "its caller to obey")  # noqa: B023
                held = note(burst)
                assert held.sent < 100
                wait_until(lambda: note(burst).paused_for > held.paused_for + 2, WAIT, "it to report again")  # noqa: B023
                assert note(burst).sent == held.sent
                assert run("resume", burst).exit_code == 0
                wait_until(lambda: note(burst).sent > held.sent, WAIT, "it to go on")  # noqa: B023
            else:
                assert (done.exit_code, "pause the queue batch" in done.stderr) == (2, True)
            pool.advanced_shutdown(1.0, 1.0)


def test_messages_are_found_on_every_list_however_many_wait_there(paused):
    counts = dict(zip(lists(QUEUE), (450, 3, 0, 250), strict=False))
    for key, count in counts.items():
        headers = {"task": "graft.batch", "group": "of-many-lists", "argsrepr": "(m:f, 2 items from 0)", "eta": None}
        texts = [
            json.dumps({"body": "x", "headers": {**headers, "id": f"{key}-{at}", SENT_AT: 5.0 + at}})
            for at in range(count)
        ]
        for text in texts:
            paused.lpush(key, text)
    try:
        found = list(purge.waiting_of("of-many-lists", paused))
        assert Counter(key.decode() if isinstance(key, bytes) else key for key, _ in found) == Counter(counts)
        assert len({raw for _, raw in found}) == 703
        sent = peek.batches(paused)["of-many-lists"]
        assert (sent.function, sent.waiting, sent.held, sent.since) == ("m:f", 703, 0, 5.0)
        whole = under_way.search(lambda one: one.batch == "of-many-lists", 1000, paused, queues=[QUEUE], budget=WAIT)
        assert (len({one.id for one in whole.found}), whole.is_whole) == (703, True)
        assert whole.found[0].id.endswith("-0")  # What is taken next stands first.
        some = under_way.search(lambda one: True, 10, paused, queues=[QUEUE], states=["queued"])
        assert (len(some.found), some.is_whole) == (10, False)
        assert not under_way.search(lambda one: True, 10, paused, queues=[QUEUE], states=["scheduled"]).found
    finally:
        paused.delete(*lists(QUEUE))


ABANDON = """
import sys, time, graft
from graft.tasks.queues import peek
from tests import samples
path = sys.argv[1]
batch = graft.submit(samples.note, [(path, str(n)) for n in range(3)], queue="low", batch_size=1, in_flight=3)
while len(peek.peek("low")) < 3: time.sleep(0.05)
print(batch.id)
"""


def test_what_a_caller_that_is_gone_left_behind_can_be_cancelled(paused, stack, tmp_path):
    ledger = tmp_path / "ran"
    done = run_python(stack, ABANDON, WAIT, str(ledger))
    assert done.returncode == 0, done.stderr
    batch_id = done.stdout.strip()
    shown = json.loads(run("show", batch_id, "--json").stdout)
    assert (shown["messages_waiting"], shown["messages_held"]) == (3, 0)
    wait_until(lambda: batch_id in run("list").stdout, WAIT, "it to be listed, though its caller is gone")
    listed = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    (mine,) = [one for one in listed if one["id"] == batch_id]
    assert (mine["function"], mine["waiting"], mine["held"], mine["caller"]) == ("tests.samples:note", 3, 0, None)
    cancelled = json.loads(run("cancel", batch_id, "--yes", "--json").stdout)
    assert cancelled["messages_withdrawn"] == 3
    assert not waiting(paused)
    assert "cancelled" in run("show", batch_id).stdout
    assert not ledger.exists()


def test_single_calls_are_no_batch(paused):
    future = Call()
    stream = CallStream(BatchOptions(refer(samples.pause), QUEUE, 5))
    stream.call(codec.dump_item(((0,), {}), 1024, "the call"), future)
    batch = graft.submit(samples.pause, range(3), queue=QUEUE)
    told(batch)
    assert stream.id not in [note.id for note in progress.running()]
    for one in (batch.id, stream.id):
        purge.cancel(one)
    assert isinstance(future.exception(WAIT), CancelledBatchError)


@pytest.mark.parametrize("argv", [["batch", "list"], ["queue", "list"], ["dead-letters", "list"]])
def test_a_redis_that_is_away_is_said_so_with_an_exit_code_of_its_own(redis_stack, argv):
    away = "redis://127.0.0.1:1/0"
    env = {**redis_stack.env, "CELERY_BROKER_URL": away, "CELERY_RESULT_BACKEND": away}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "graft", *argv], env=env, capture_output=True, text=True, timeout=WAIT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


WRONG_PASSWORD = """
import graft
from graft.tasks.errors import BrokerUnavailable
try:
    graft.submit(len, ["a"]).collect(30)
except BrokerUnavailable as error:
    print(error)
"""


def test_a_redis_that_refuses_the_password_need_not_be_started(redis_stack):
    host = redis_stack.redis_url.rpartition("@")[2]
    address = f"redis://:wrong-password@{host}"
    env = {**redis_stack.env, "CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address}
    for argv in (["-m", "celery", "-A", "graft", "batch", "list"], ["-c", WRONG_PASSWORD]):
        done = subprocess.run(
            [sys.executable, *argv], env=env, capture_output=True, text=True, timeout=WAIT, check=False
        )
        told = done.stdout + done.stderr
        assert "refuses the user or password" in told
        assert "correct them in CELERY_BROKER_URL" in told
        assert "start it" not in told
        assert "wrong-password" not in told


# Last: it has the workers read the queue again.
def test_workers_heed_the_flag_for_what_is_not_taken_out(paused, tmp_path):
    ledger = tmp_path / "ran"
    batch = graft.submit(samples.note, [(str(ledger), "1")], queue=QUEUE)
    wait_until(lambda: waiting(paused), WAIT, "the message to wait")
    cancellation.cancel(batch.id, 60)
    pause.resume(QUEUE)
    with pytest.raises(CancelledBatchError):
        batch.collect(WAIT)
    assert not Path(ledger).exists()
