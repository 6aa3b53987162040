"""A batch that is the deployment's: read, steered and run again from any process, under its id or its name."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter

import pytest

import graft
from graft.config.deployment import current
from graft.tasks.delivery import cancellation
from graft.tasks.durable import record
from graft.tasks.ids import new_id
from tests import samples
from tests.stack import run_python, wait_until

WAIT = 60.0


@pytest.fixture
def name() -> str:
    return f"test {new_id()}"


@pytest.fixture(autouse=True)
def _forgotten(redis) -> Iterator[None]:
    yield
    for one in record.every(redis):
        record.forget(one, redis)


def test_values_come_in_order_to_any_number_of_readers(stack, name):
    items = [*range(500), "a text", b"bytes", (1, 2.5), None, True]
    graft.submit(samples.identity, items, name=name, batch_size=7)
    batches = [graft.batch(name) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(list, batches)) == [items] * 3
    assert batches[0].collect(WAIT) == items
    assert [outcome.value for outcome in sorted(batches[1].as_completed(WAIT), key=lambda one: one.index)] == items
    assert batches[0].id == batches[1].id == graft.batch(batches[0].id).id
    assert batches[0].state == "succeeded"
    far = batches[2].progress()
    assert (far.total, far.sent, far.done, far.failed, far.envelopes) == (505, 505, 505, 0, 73)
    assert list(graft.batch(name).errors()) == []


def test_items_that_no_plain_pickle_holds_travel_too(stack):
    items = [samples.Price(cents=number) for number in range(50)] + [{"a": [1]}, {"b": 2}] + list(range(20))
    assert graft.submit(samples.identity, items, durable=True).collect(WAIT) == items


def test_a_coroutine_awaits_and_iterates(stack, name):
    async def main():
        batch = graft.submit(samples.async_square, range(40), name=name, batch_size=3)
        assert await batch == [n * n for n in range(40)]
        assert [value async for value in batch] == [n * n for n in range(40)]
        assert {one.index async for one in batch.as_completed_async()} == set(range(40))
        with pytest.raises(TypeError):
            graft.batch(None)

    asyncio.run(main())


def test_a_cancelled_await_cancels_nothing(stack, name):
    async def main():
        batch = graft.submit(samples.async_pause, range(20), name=name, batch_size=1, in_flight=2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await batch

    asyncio.run(main())
    assert graft.batch(name).collect(WAIT) == list(range(20))


def test_errors_are_items_outcomes_and_run_again_once_their_cause_is_mended(stack, name, tmp_path):
    gate = tmp_path / "mended"
    items = [(str(gate), number) for number in range(300)]
    batch = graft.submit(fails_if_closed, items, name=name, batch_size=20)
    batch.wait(WAIT)
    assert batch.state == "failed"
    bad = [number for number in range(300) if number % 100 in (7, 8)]
    assert [outcome.index for outcome in batch.errors()] == bad
    assert isinstance(next(batch.errors()).error, ValueError)
    with pytest.raises(ValueError, match="7 is not mended"):
        batch.collect(WAIT)
    values = iter(batch)
    assert [next(values) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="7 is not mended"):
        next(values)
    gate.touch()
    assert graft.batch(name).resume(failed=True) == 6
    assert batch.collect(WAIT) == list(range(300))
    assert list(batch) == list(range(300))
    assert list(batch.errors()) == []
    assert batch.state == "succeeded"
    assert sorted(one.index for one in batch.as_completed(WAIT)) == list(range(300))
    assert batch.resume(failed=True) == 0


def fails_if_closed(item):
    gate, number = item
    from pathlib import Path

    if number % 100 in (7, 8) and not Path(gate).exists():
        raise ValueError(f"{number} is not mended")
    return number


def test_what_failed_fails_again_until_it_is_mended_and_a_running_batch_is_not_run_again(stack, name):
    batch = graft.submit(samples.raise_value_error_if_odd, range(20), name=name)
    batch.wait(WAIT)
    for _ in range(2):
        assert batch.resume(failed=True) == 10
        batch.wait(WAIT)
        assert [one.index for one in batch.errors()] == list(range(1, 20, 2))
    slow = graft.submit(samples.pause, range(100), durable=True, batch_size=1)
    with pytest.raises(graft.TaskQueueError, match="still runs"):
        slow.resume(failed=True)
    slow.cancel()


def test_retries_are_counted_and_letters_kept_as_for_any_batch(stack, name, tmp_path):
    paths = [(str(tmp_path / str(n)), 2) for n in range(4)]
    batch = graft.submit(samples.fail_until, paths, name=name, retry=graft.RetryPolicy(runs=3, base=0.01))
    assert batch.collect(WAIT) == [2] * 4
    assert batch.progress().retries == 4


def test_a_pause_sends_nothing_more_and_ends(stack, name):
    batch = graft.submit(samples.pause, range(60), name=name, batch_size=1, in_flight=2)
    wait_until(lambda: batch.progress().done >= 2, WAIT, "a few items to be done")
    graft.batch(name).pause()
    assert batch.state == "paused"
    wait_until(lambda: batch.progress().sent == batch.progress().done, WAIT, "what was sent to end")
    far = batch.progress().done
    with pytest.raises(graft.ResultTimeout, match="reads it later"):
        batch.wait(1.0)
    assert batch.progress().done == far < 60
    batch.resume()
    assert batch.collect(WAIT) == list(range(60))


def test_a_cancelled_batch_ends_and_can_be_run_after_all(stack, name):
    batch = graft.submit(samples.pause, range(2000), name=name, batch_size=1, in_flight=2)
    wait_until(lambda: batch.progress().done >= 2, WAIT, "a few items to be done")
    graft.batch(name).cancel()
    batch.wait(WAIT)
    errors = list(batch.errors())
    assert {type(one.error) for one in errors} == {graft.CancelledBatchError}
    assert len(errors) + sum(one.error is None for one in batch.as_completed(WAIT)) == 2000
    assert batch.resume(failed=True) == len(errors)
    wait_until(lambda: batch.progress().done >= 2000 - len(errors) + 3, WAIT, "it to go on")
    batch.forget()


def test_a_resume_that_is_refused_lifts_no_cancel(stack, name, redis):
    batch = graft.submit(samples.sleep, [4.0, *[0.0] * 20], name=name, batch_size=1, in_flight=1)
    wait_until(lambda: batch.progress().sent, WAIT, "the first item to be sent")
    batch.cancel()
    with pytest.raises(graft.TaskQueueError, match="still runs"):
        batch.resume(failed=True)
    assert cancellation.is_whole(redis.get(cancellation.CANCEL_KEY + batch.id))
    batch.wait(WAIT)
    assert batch.progress().failed >= 20


def test_a_forgotten_batch_is_unknown_and_leaves_no_key(stack, name, redis):
    batch = graft.submit(samples.pause, range(500), name=name, batch_size=1)
    values = iter(batch)
    next(values)
    batch.forget()
    with pytest.raises(graft.UnknownBatchError, match="GRAFT_BATCH_TTL"):
        graft.batch(name)
    with pytest.raises(graft.UnknownBatchError):
        list(values)
    wait_until(lambda: not redis.keys(f"graft:durable:*{batch.id}*"), WAIT, "late outcomes to be dropped")
    assert not redis.zscore(record.OPEN, batch.id)
    assert redis.zscore(record.ALL, batch.id) is None


def test_every_key_expires_and_a_reader_is_told(stack, name, redis):
    batch = graft.submit(samples.identity, range(100), name=name)
    batch.wait(WAIT)
    left = redis.keys(f"graft:durable:*{batch.id}*")
    wait_until(lambda: all(redis.ttl(key) > 600_000 for key in left if redis.exists(key)), WAIT, "an expiry")
    assert 600_000 < redis.ttl(record.NAME + name) <= 7 * 86400
    values = iter(graft.submit(samples.square_slowly_if_even, range(2000), durable=True, batch_size=1, in_flight=1))
    next(values)
    for key in redis.keys("graft:durable:*"):
        if redis.type(key) == b"hash" and key.count(b":") == 2 and key != b"graft:durable:feeder":
            redis.expire(key, 0)
    with pytest.raises(graft.UnknownBatchError):
        list(values)


def test_pages_go_when_their_items_have_run(stack, name, redis):
    batch = graft.submit(samples.raise_value_error_if_odd, [*range(0, 50_000, 2), 7], name=name)
    keys = record.BatchKeys(batch.id)
    assert redis.hlen(keys.part("items")) == 2
    batch.wait(WAIT)
    wait_until(lambda: redis.hlen(keys.part("items")) == 1, WAIT, "the first page to go")
    wait_until(lambda: redis.memory_usage(keys.part("items")) < 1000, WAIT, "the second to hold the failed item alone")
    assert batch.resume(failed=True) == 1
    batch.wait(WAIT)
    assert [str(one.error) for one in batch.errors()] == ["7 is odd"]


def test_the_same_name_goes_on_and_anything_else_is_refused(stack, name):
    items = [{"id": number} for number in range(50)]
    first = graft.submit(samples.id_of, items, name=name)
    again = graft.submit(samples.id_of, json.loads(json.dumps(items)), name=name)
    assert again.id == first.id
    with pytest.raises(graft.BatchExistsError, match="51"):
        graft.submit(samples.id_of, [*items, {"id": 50}], name=name)
    with pytest.raises(graft.BatchExistsError, match="samples:identity"):
        graft.submit(samples.identity, items, name=name)
    with pytest.raises(graft.BatchExistsError, match="already"):
        graft.submit(samples.id_of, items, name=name, if_exists="error")
    other = graft.submit(samples.square, range(10), name=name, if_exists="restart")
    assert other.id != first.id
    assert other.collect(WAIT) == [n * n for n in range(10)]
    with pytest.raises(graft.UnknownBatchError):
        graft.batch(first.id)


BODIES = """
import sys, graft
def compute(x):
    return x + {}
try:
    print(graft.submit(compute, range(10), name=sys.argv[1]).collect(60))
except graft.BatchExistsError as error:
    print(error)
"""


def test_a_function_whose_body_has_changed_is_told_of(stack, name):
    for body, expected in (("1", str(list(range(1, 11)))), ("1  # the same", "[1, 2"), ("2", "has been changed since")):
        done = run_python(stack, BODIES.format(body), WAIT, name)
        assert expected in done.stdout, done.stderr


def test_two_who_submit_a_name_at_once_have_one_batch(stack, name):
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: graft.submit(samples.square, range(1000), name=name).id, range(4))
        assert len(set(made)) == 1
    assert graft.batch(name).collect(WAIT) == [n * n for n in range(1000)]


def test_an_item_that_cannot_travel_is_named_and_costs_itself_alone(stack, name):
    items: list[object] = list(range(1000))
    items[700] = threading.Lock()
    with pytest.raises(graft.UnpicklableError, match="item 700 "):
        graft.submit(samples.identity, items, name=name, bad_items="raise")
    with pytest.raises(graft.UnknownBatchError):
        graft.batch(name)
    batch = graft.submit(samples.identity, items, name=name)
    batch.wait(WAIT)
    (error,) = batch.errors()
    assert error.index == 700
    assert isinstance(error.error, graft.UnpicklableError)
    assert batch.progress().done == 1000
    assert batch.resume(failed=True) == 1
    batch.wait(WAIT)
    (error,) = batch.errors()
    assert "submit it again" in str(error.error)


@pytest.mark.parametrize(
    ("options", "items", "kind", "said"),
    [
        ({"durable": True}, (n for n in range(3)), TypeError, "list(items) makes one"),
        ({"durable": True}, iter([1]), TypeError, "iterator"),
        ({"durable": True, "reduce": sum}, [1], ValueError, "reduce="),
        ({"name": ""}, [1], ValueError, "printable"),
        ({"name": 7}, [1], TypeError, "text"),
        ({"name": "x", "if_exists": "replace"}, [1], ValueError, "'attach'"),
        ({"name": "x", "bad_items": "drop"}, [1], ValueError, "'keep'"),
        ({"durable": True, "queue": "nowhere"}, [1], ValueError, "nowhere"),
        ({"durable": True}, 5, TypeError, "iterable"),
    ],
)
def test_what_cannot_be_a_durable_batch_is_refused_before_anything_is_kept(stack, redis, options, items, kind, said):
    with pytest.raises(kind) as caught:
        graft.submit(samples.identity, items, **options)
    assert said in str(caught.value)
    assert not record.every(redis)


def test_items_beyond_the_limit_are_refused_with_its_name(stack, name, redis, monkeypatch):
    monkeypatch.setenv("GRAFT_SPOOL_LIMIT", "100000")
    current.reread_settings()
    try:
        with pytest.raises(graft.PayloadTooLargeError, match="GRAFT_SPOOL_LIMIT"):
            graft.submit(samples.identity, [b"x" * 60_000, b"y" * 60_000], name=name)
    finally:
        monkeypatch.undo()
        current.reread_settings()
    assert not redis.keys(f"graft:durable:*{name}*")
    assert not record.every(redis)


def test_an_empty_batch_has_ended(stack, name):
    batch = graft.submit(samples.identity, [], name=name)
    assert batch.state == "succeeded"
    assert batch.collect(WAIT) == []
    assert list(batch.as_completed(WAIT)) == []


def test_an_iterable_that_is_no_sequence_is_read_from_the_beginning(stack, name):
    assert sorted(graft.submit(samples.identity, {1, 2, 3}, name=name).collect(WAIT)) == [1, 2, 3]
    assert graft.submit(samples.identity, {1, 2, 3}, name=name).id == graft.batch(name).id


def test_a_local_deployment_has_none(monkeypatch):
    monkeypatch.setenv("GRAFT_MODE", "local")
    current.reread_settings()
    try:
        with pytest.raises(ValueError, match="GRAFT_MODE=local"):
            graft.submit(samples.identity, [1], durable=True)
    finally:
        monkeypatch.undo()
        current.reread_settings()


def test_a_task_may_submit_one_and_must_not_wait_for_it(stack, name):
    (outcome,) = graft.submit(submit_and_wait, [name]).as_completed(WAIT)
    assert isinstance(outcome.error, RuntimeError)
    assert "a task must not wait" in str(outcome.error)
    assert graft.batch(name).collect(WAIT) == [0, 1, 4]


def submit_and_wait(name):
    import graft

    return graft.submit(samples.square_slowly_if_even, [0, 1, 2], name=name).collect(10)


def test_a_long_envelope_shares_its_items_and_all_are_counted_once(stack):
    batch = graft.submit(slow_at_first, range(24), durable=True)
    assert batch.collect(WAIT) == list(range(24))
    assert batch.progress().done == 24


def slow_at_first(x):
    import time

    time.sleep(0.4)
    return x


def test_an_item_that_kills_its_process_costs_itself_alone(stack, name):
    batch = graft.submit(samples.kill_process_if, [(n, 3) for n in range(8)], name=name, batch_size=4)
    batch.wait(WAIT)
    (error,) = batch.errors()
    assert error.index == 3
    assert isinstance(error.error, graft.PoisonedError)
    assert batch.progress().done == 8


ONLY_HERE = """
import sys, graft
sys.path.insert(0, sys.argv[1])
import only_here
batch = graft.submit(only_here.double, range(20), name=sys.argv[2], batch_size=4)
batch.wait(60)
print({type(one.error).__name__ for one in batch.errors()}, batch.progress().failed)
"""


def test_what_workers_cannot_import_fails_with_every_item_and_runs_once_they_can(stack, name, tmp_path, redis):
    module = tmp_path / "only_here.py"
    module.write_text("def double(x):\n    return 2 * x\n")
    done = run_python(stack, ONLY_HERE, WAIT, str(tmp_path), name)
    assert done.stdout.strip() == "{'UnreferenceableError'} 20", done.stderr
    batch = graft.batch(name)
    assert redis.hlen(record.BatchKeys(batch.id).part("sent")) == 0
    assert batch.resume(failed=True) == 20
    batch.wait(WAIT)
    assert batch.progress().failed == 20


def test_options_that_workers_cannot_open_end_the_batch_with_the_reason(stack, name, redis):
    batch = graft.submit(samples.pause, range(100), name=name, batch_size=1)
    batch.pause()
    keys = record.BatchKeys(batch.id)
    redis.set(keys.part("plan"), b"x" * 100)
    redis.hincrby(keys.record, "generation", 1)  # Whoever feeds reads it anew.
    with pytest.raises(graft.SignatureError):
        batch.collect(WAIT)
    with pytest.raises(graft.SignatureError):
        list(batch)
    assert batch.state == "failed"


def test_a_page_that_is_gone_or_forged_fails_its_own_items(stack, name, redis):
    items = [b"%d" % number + b"-" * 100_000 for number in range(60)]
    batch = graft.submit(samples.pause, items, name=name, batch_size=1, in_flight=2)
    batch.pause()
    keys = record.BatchKeys(batch.id)
    firsts = [int(first) for first in redis.zrange(keys.part("pages"), 0, -1)]
    redis.hset(keys.part("items"), firsts[-2], b"x" * 1000)
    redis.hdel(keys.part("items"), firsts[-1])
    redis.hincrby(keys.record, "generation", 1)  # Whoever feeds reads it anew.
    batch.resume()
    batch.wait(WAIT)
    assert [one.index for one in batch.errors()] == list(range(firsts[-2], 60))
    assert {type(one.error) for one in batch.errors()} == {graft.EnvelopeError}


RESUMED = """
import sys, graft
def compute(x):
    if x % 50 == 7 and {broken}:
        raise ValueError(x)
    return x
options = {{"resume": sys.argv[2]}} if len(sys.argv) > 2 else {{}}
try:
    batch = graft.submit(compute, range(200), name=sys.argv[1], **options)
    batch.wait(60)
    print(batch.state, batch.progress().failed)
except graft.BatchExistsError as error:
    print(error)
"""


def test_a_program_that_is_mended_and_run_again_runs_what_has_failed(stack, name):
    def run(broken: str, *options: str) -> str:
        done = run_python(stack, RESUMED.format(broken=broken), WAIT, name, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("True", "failed") == "failed 4"
    assert run("True") == "failed 4"
    assert run("True", "failed") == "failed 4"
    assert 'resume="force"' in run("False", "failed")
    assert run("False", "force") == "succeeded 0"
    assert run("False", "failed") == "succeeded 0"
    assert graft.batch(name).collect(WAIT) == list(range(200))


def rows(*numbers, price=1):
    return [{"id": number, "price": price} for number in numbers]


def test_with_a_key_only_items_that_are_new_or_failed_or_invalidated_run(stack, name, tmp_path):
    ledger = tmp_path / "ledger"

    def submit(items, **how):
        batch = graft.submit(notes_row(ledger), items, name=name, key=itemgetter("id"), batch_size=3, **how)
        batch.wait(WAIT)
        ran, _ = ledger.read_text().split() if ledger.exists() else [], ledger.unlink(missing_ok=True)
        return batch, sorted(map(int, ran))

    first, ran = submit(rows(*range(20), price=0))
    assert ran == list(range(20))
    assert first.progress().failed == 2  # 7 and 17.
    again, ran = submit(rows(*range(20), price=0))
    assert (again.id, ran) == (first.id, [])
    (tmp_path / "mended").touch()
    shuffled = rows(*reversed(range(5, 30)), price=9)  # Other content, another order, the same keys.
    second, ran = submit(shuffled)
    assert ran == [7, 17, *range(20, 30)]
    assert second.id != first.id
    assert second.collect(WAIT) == [f"{n} {9 if n in (7, 17) or n >= 20 else 0}" for n in reversed(range(5, 30))]
    with pytest.raises(graft.UnknownBatchError):
        graft.batch(first.id)
    third, ran = submit(shuffled, invalidate={8, 29, 1000})
    assert ran == [8, 29]
    assert list(third) == [f"{n} {9 if n in (7, 8, 17) or n >= 20 else 0}" for n in reversed(range(5, 30))]
    fourth, ran = submit(rows(5, 5, 6), invalidate=lambda key: key == 6)
    assert ran == [6]
    assert fourth.collect(WAIT) == ["5 0", "5 0", "6 1"]
    assert [one.id for one in record.every() if one.name == name] == [fourth.id]
    nothing_new, ran = submit(rows(6, 5))
    assert (nothing_new.collect(WAIT), ran, nothing_new.state) == (["6 1", "5 0"], [], "succeeded")


def test_what_a_key_cannot_do_is_refused(stack, name):
    batch = graft.submit(samples.identity, range(40), name=name, key="item")
    batch.wait(WAIT)
    grown = graft.submit(samples.identity, range(60), name=name, key="item")
    assert grown.collect(WAIT) == list(range(60))
    with pytest.raises(TypeError, match="the key of item 0"):
        graft.submit(samples.identity, range(3), name=name, key=lambda item: object())
    assert graft.batch(name).id == grown.id
    grown.forget()
    graft.submit(samples.identity, range(3), name=name).wait(WAIT)
    with pytest.raises(graft.BatchExistsError, match="without key="):
        graft.submit(samples.identity, range(4), name=name, key="item")
    with pytest.raises(graft.BatchExistsError, match="say by key="):
        graft.submit(samples.identity, range(4), name=name)
    graft.batch(name).forget()
    slow = graft.submit(samples.pause, range(100), name=name, key="item", batch_size=1)
    with pytest.raises(graft.BatchExistsError, match="still runs"):
        graft.submit(samples.pause, range(50), name=name, key="item")
    slow.cancel()
    for how, text in (
        ({"key": "item"}, "give its name="),
        ({"name": name, "invalidate": [1]}, "say by key="),
        ({"name": None, "durable": False, "key": "item"}, "durable batches"),
    ):
        with pytest.raises(ValueError, match=text):
            graft.submit(samples.identity, [1], **{"durable": True, **how})


def notes_row(ledger):
    return partial(samples.note_row, str(ledger))
