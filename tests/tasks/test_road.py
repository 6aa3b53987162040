"""The road on real workers: order, outcomes, iteration, progress, cancelling, streams, chords."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import threading
import time
from typing import Any

import pytest
from celery import signals
from celery.result import GroupResult

import graft
from graft.config.celery_app import app
from graft.tasks.errors import CancelledBatchError, ItemTimeoutError, ResultTimeout, UnreferenceableError
from graft.tasks.monitoring.function_stats import FunctionStats
from graft.tasks.monitoring.function_stats import read as read_figures
from graft.tasks.policy import RetryPolicy
from graft.tasks.sending import pace_store
from tests import samples
from tests.people import held
from tests.stack import wait_until

WAIT = 60.0


def test_values_come_in_the_order_of_the_items(stack):
    batch = graft.submit(samples.square_slowly_if_even, range(20), batch_size=1)
    assert batch.collect(WAIT) == [x * x for x in range(20)]


@pytest.mark.parametrize("items", [[3, 1, 2], (3, 1, 2), range(5), "word", b"\x01\x02"], ids=lambda i: type(i).__name__)
def test_any_sequence_goes(stack, items):
    assert graft.submit(samples.identity, items).collect(WAIT) == list(items)


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_an_envelope_holds_as_many_items_as_was_asked(stack, size):
    batch = graft.submit(samples.square, range(30), batch_size=size)
    assert batch.collect(WAIT) == [x * x for x in range(30)]
    assert batch.progress().envelopes == -(-30 // size)


def test_an_empty_batch_sends_nothing(stack, redis):
    batch = graft.submit(samples.square, [])
    assert batch.collect(0) == []
    assert list(batch) == []
    assert batch.progress().envelopes == 0


def test_ten_thousand_tiny_items_need_few_envelopes_once_the_pace_is_known(stack):
    graft.submit(samples.identity, range(10_000)).collect(WAIT)
    batch = graft.submit(samples.identity, range(10_000))
    assert batch.collect(WAIT) == list(range(10_000))
    assert batch.progress().envelopes < 100


def test_several_processes_share_the_work(stack):
    graft.submit(samples.pause, range(4), batch_size=1).collect(WAIT)
    assert len(set(graft.submit(samples.process_id, range(40), batch_size=1).collect(WAIT))) > 1


def test_a_batch_can_be_awaited_under_one_loop_after_another(stack):
    async def both() -> list[list[int]]:
        return [await graft.submit(samples.square, [2, 3]), await graft.submit(samples.async_square, [4, 5])]

    for _ in range(3):
        assert asyncio.run(both()) == [[4, 9], [16, 25]]


def test_waiting_does_not_hold_the_event_loop(stack):
    async def ticks_while_waiting() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        await graft.submit(samples.pause, [1, 2], batch_size=1)
        ticking.cancel()
        return ticks

    assert asyncio.run(ticks_while_waiting()) > 5


@pytest.mark.parametrize(
    ("read", "advice"),
    [
        (lambda batch: batch.collect(WAIT), "await batch"),
        (list, "async for value in batch"),
        (lambda batch: list(batch.as_completed()), "as_completed_async"),
    ],
    ids=["collect", "iterate", "as_completed"],
)
def test_a_batch_does_not_hold_up_the_event_loop_of_its_thread(stack, read, advice):
    async def hold_up() -> Any:
        batch = graft.submit(samples.pause, range(3), batch_size=1)
        with pytest.raises(RuntimeError, match=advice):
            read(batch)
        values = await batch
        assert batch.collect() == values  # Nothing to wait for.
        return values

    assert asyncio.run(hold_up()) == [0, 1, 2]


def test_a_forgotten_await_is_said(stack):
    async def forget() -> None:
        graft.submit(samples.square, range(3))
        gc.collect()

    with pytest.warns(RuntimeWarning, match="never awaited"):
        asyncio.run(forget())


def test_nothing_is_said_of_a_batch_that_is_detached_or_is_no_coroutines(stack):
    async def let_go() -> None:
        graft.submit(samples.square, range(3)).detach()

    asyncio.run(let_go())
    graft.submit(samples.square, range(3))
    gc.collect()


def test_iteration_gives_values_in_order_while_the_rest_still_runs(stack):
    batch = graft.submit(samples.sleep, [0.0, 0.0, 1.5], batch_size=1)
    values = iter(batch)
    assert [next(values), next(values)] == [0.0, 0.0]
    assert not batch.done()
    assert list(values) == [1.5]
    assert batch.collect(0) == [0.0, 0.0, 1.5]


def test_async_iteration_gives_values_in_order(stack):
    async def read() -> list[int]:
        return [value async for value in graft.submit(samples.async_square_slowly_if_even, range(10), batch_size=2)]

    assert asyncio.run(read()) == [x * x for x in range(10)]


def test_as_completed_gives_the_fast_ones_first_and_errors_as_outcomes(stack):
    batch = graft.submit(samples.sleep, [2.0, 0.0, -1], batch_size=1)
    outcomes = list(batch.as_completed(WAIT))
    assert [outcome.index for outcome in outcomes][-1] == 0
    assert isinstance(next(outcome.error for outcome in outcomes if outcome.index == 2), ValueError)
    with pytest.raises(ValueError, match="sleep length"):
        next(outcome for outcome in outcomes if outcome.index == 2).unwrap()


def test_as_completed_works_for_coroutines(stack):
    async def read() -> set[int]:
        return {outcome.value async for outcome in graft.submit(samples.square, range(20)).as_completed_async()}

    assert asyncio.run(read()) == {x * x for x in range(20)}


def test_several_threads_may_wait_for_one_batch(stack):
    batch = graft.submit(samples.pause, range(4), batch_size=1)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(batch.collect(WAIT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1, 2, 3]] * 4


def test_a_timeout_leaves_the_batch_to_be_collected_later(stack):
    batch = graft.submit(samples.sleep, [0.5])
    with pytest.raises(ResultTimeout, match="0 of 1 results"):
        batch.collect(0.01)
    assert batch.collect(WAIT) == [0.5]


def test_progress_counts_what_was_sent_done_and_failed(stack):
    batch = graft.submit(samples.raise_value_error_if_odd, range(10), batch_size=5)
    list(batch.as_completed(WAIT))
    progress = batch.progress()
    assert (progress.total, progress.sent, progress.done, progress.failed) == (10, 10, 10, 5)
    assert (progress.envelopes, progress.retries) == (2, 0)


def test_cancelling_keeps_what_has_not_begun_from_running(stack, tmp_path):
    ledger = tmp_path / "ran"
    slow = [(str(ledger), f"{index}") for index in range(200)]
    blocker = graft.submit(samples.pause, range(8), batch_size=1)
    batch = graft.submit(samples.note, slow, batch_size=1)
    batch.cancel()
    outcomes = list(batch.as_completed(WAIT))
    assert len(outcomes) == 200
    cancelled = {outcome.index for outcome in outcomes if isinstance(outcome.error, CancelledBatchError)}
    assert len(cancelled) >= 190
    assert blocker.collect(WAIT) == list(range(8))
    ran = set(ledger.read_text().split()) if ledger.exists() else set()
    assert {str(index) for index in range(200)} - {str(index) for index in cancelled} == ran


def test_an_endless_input_is_read_only_as_far_as_it_is_used(stack):
    drawn = itertools.count()
    seen = 0

    def endless():
        nonlocal seen
        for number in drawn:
            seen = number
            yield number

    batch = graft.submit(samples.square, endless())
    assert list(itertools.islice(batch, 1000)) == [x * x for x in range(1000)]
    batch.cancel()
    assert seen < 200_000


def test_a_stream_has_as_many_in_flight_as_was_asked_before_anything_is_known_of_it(stack):
    with held("heavy"):
        batch = graft.submit(lambda x: -x, iter(range(1000)), queue="heavy", batch_size=1, in_flight=300)
        wait_until(lambda: batch.progress().sent == 300, WAIT, "all that may be in flight")
    assert batch.collect(WAIT) == [-x for x in range(1000)]


def test_of_large_items_fewer_are_read_ahead(stack):
    seen = 0

    def endless():
        nonlocal seen
        for number in itertools.count(1):
            seen = number
            yield bytes(500_000)

    def has_stopped():
        before = seen
        time.sleep(1.0)
        return seen == before

    results = iter(graft.submit(samples.identity, endless()))
    assert [len(next(results)) for _ in range(50)] == [500_000] * 50
    wait_until(has_stopped, WAIT, "the stream to wait for its reader")
    results.close()
    assert seen < 400  # 200 MB; as many small items as are read ahead would be 50 GB.


def test_a_generator_that_raises_ends_its_own_batch(stack):
    def broken():
        yield from range(10)
        raise KeyError("the input broke")

    with pytest.raises(KeyError, match="the input broke"):
        graft.submit(samples.square, broken()).collect(WAIT)


def test_a_stream_that_ends_is_collected_whole(stack):
    assert graft.submit(samples.square, (x for x in range(30_000))).collect(WAIT) == [x * x for x in range(30_000)]


def test_a_reduce_step_gets_all_values_in_order(stack):
    batch = graft.submit(samples.identity, range(500), reduce=list)
    assert batch.collect(WAIT) == list(range(500))
    assert batch.progress().done == 500


def test_a_reduce_step_is_a_chord(stack):
    batch = graft.submit(samples.square, range(100), batch_size=10, reduce=samples.total)
    assert batch.collect(WAIT) == sum(x * x for x in range(100))
    assert batch.progress().envelopes == 10
    # Celery's own chord bookkeeping ran: the body's result is under its own id, and no part count is left behind.
    assert not app.backend.client.exists(app.backend.get_key_for_group(batch.id, ".j"))


def test_a_failed_item_is_the_answer_of_a_reduced_batch(stack):
    with pytest.raises(ValueError, match="1 is odd"):
        graft.submit(samples.raise_value_error_if_odd, range(100), reduce=samples.total).collect(WAIT)


def test_a_reduce_step_gets_errors_too_where_asked(stack):
    items = [*range(40), lambda: "cannot travel", *range(5)]
    batch = graft.submit(samples.raise_value_error_if_odd, items, batch_size=4, reduce=samples.tally, on_error="keep")
    assert batch.collect(WAIT) == {"values": sum(range(0, 40, 2)) + 6, "ValueError": 22, "UnpicklableError": 1}
    assert batch.progress().failed == 23
    with pytest.raises(graft.UnpicklableError):
        graft.submit(samples.identity, [lambda: 1], reduce=samples.tally, on_error="keep").collect(WAIT)
    with pytest.raises(ValueError, match="as_completed"):
        graft.submit(samples.identity, [1], on_error="keep")


def test_a_failing_reducer_is_the_answer_of_a_reduced_batch(stack):
    with pytest.raises(ValueError, match="no "):
        graft.submit(samples.square, range(10), reduce=samples.raise_value_error).collect(WAIT)


def test_a_batch_is_a_celery_group(stack):
    batch = graft.submit(samples.square, range(50), batch_size=10)
    batch.collect(WAIT)
    wait_until(lambda: GroupResult.restore(batch.id, app=app), what="the group's record")
    group = GroupResult.restore(batch.id, app=app)
    assert len(group.results) == 5
    assert group.successful()


def test_callables_travel_by_value_when_they_capture_nothing_that_changes(stack):
    factor = 7
    assert graft.submit(lambda x: x * factor, range(5)).collect(WAIT) == [0, 7, 14, 21, 28]


def test_a_callable_by_value_sees_what_it_captured_at_the_time_of_the_call(stack):
    for factor in (2, 3):
        assert graft.submit(lambda x, by=factor: x * by, [10]).collect(WAIT) == [10 * factor]


def test_a_plain_function_may_return_an_awaitable(stack):
    assert graft.submit(lambda x: samples.async_square(x), range(10)).collect(WAIT) == [x * x for x in range(10)]


def test_async_items_of_one_envelope_run_together(stack):
    began = time.monotonic()
    graft.submit(samples.async_pause, range(200), batch_size=200, concurrency=200).collect(WAIT)
    assert time.monotonic() - began < 200 * 0.2 / 4


def test_arguments_may_be_unpacked(stack):
    batch = graft.submit(samples.add, [((1, 2), {}), ((3,), {"b": 4})], unpack=True)
    assert batch.collect(WAIT) == [3, 7]


def test_a_failing_item_is_run_again_and_its_neighbours_are_not(stack, tmp_path):
    retried, once = tmp_path / "retried", tmp_path / "once"
    batch = graft.submit(
        samples.fail_until,
        [(str(once), 1), (str(retried), 3)],
        batch_size=2,
        retry=RetryPolicy(runs=5, base=0.01, ceiling=0.05),
    )
    assert batch.collect(WAIT) == [1, 3]
    assert batch.progress().retries == 2
    assert once.read_text().splitlines() == ["run"]


def test_an_error_is_not_retried_unless_asked(stack, tmp_path):
    ledger = tmp_path / "runs"
    with pytest.raises(ConnectionError, match="run 1 of 3"):
        graft.submit(samples.fail_until, [(str(ledger), 3)]).collect(WAIT)
    assert ledger.read_text().splitlines() == ["run"]


def test_a_mistake_is_not_retried_and_is_given_up_at_once(stack):
    batch = graft.submit(samples.raise_value_error_if_odd, range(4), batch_size=4, retry=RetryPolicy(5, base=30.0))
    (errors,) = [[outcome.index for outcome in batch.as_completed(WAIT) if outcome.error is not None]]
    assert sorted(errors) == [1, 3]
    assert batch.progress().retries == 0


def test_each_retry_is_logged_by_the_worker_and_calls_the_hook(stack, tmp_path):
    ledger = tmp_path / "hooks"
    policy = RetryPolicy(3, waits=(0.01,), on_retry=samples.note_failed_run)
    with pytest.raises(ConnectionError):
        graft.submit(samples.fail_and_note, [str(ledger)], retry=policy).collect(WAIT)
    assert ledger.read_text().split() == ["1/3:0", "2/3:0"]
    line = f"run 2 of 3 of item 0 of tests.samples:fail_and_note failed: ConnectionError('{ledger}'). It runs again"
    assert any(line in worker.log.read_text() for worker in stack.workers)


def test_a_run_of_what_had_failed_teaches_no_pace(stack, redis, tmp_path):
    items = [str(tmp_path / str(number)) for number in range(6)]
    policy = RetryPolicy(2, waits=(0.0,))
    assert graft.submit(samples.fail_slowly_once, items, batch_size=3, retry=policy).collect(WAIT) == items
    pace = pace_store.load("tests.samples:fail_slowly_once", redis)
    assert not pace.items or pace.seconds > 0.05  # Not the moment that the second runs took.


def test_no_run_begins_once_the_seconds_of_the_policy_are_over(stack, tmp_path):
    ledger = tmp_path / "runs"
    policy = RetryPolicy(50, waits=(0.4,), max_seconds=1.0)
    with pytest.raises(ConnectionError):
        graft.submit(samples.fail_until, [(str(ledger), 99)], retry=policy).collect(WAIT)
    assert 1 <= len(ledger.read_text().split()) <= 3


def test_a_policy_that_a_worker_cannot_import_is_refused():
    class Strange(Exception):
        pass

    for policy in (RetryPolicy(on=Strange), RetryPolicy(on_retry=lambda failed: None)):
        with pytest.raises(UnreferenceableError, match="retry: a worker cannot import"):
            graft.submit(samples.square, [1], retry=policy)


@pytest.mark.parametrize("func", [samples.sleep, samples.async_pause], ids=["plain", "async"])
def test_an_item_over_its_time_limit_ends_alone(stack, func):
    items = [0.0, 30.0] if func is samples.sleep else [((0,), {"seconds": 0.0}), ((1,), {"seconds": 30.0})]
    batch = graft.submit(func, items, timeout=0.3, unpack=func is samples.async_pause)
    first, second = sorted(batch.as_completed(WAIT), key=lambda outcome: outcome.index)
    assert first.error is None
    assert isinstance(second.error, ItemTimeoutError)
    assert isinstance(second.error, TimeoutError)


def test_the_figures_of_a_callable_are_kept_in_redis(stack):
    def figures() -> FunctionStats:
        return read_figures().get("tests.samples:add", FunctionStats())

    before = figures()
    graft.submit(samples.add, [((1, 2), {})] * 5, unpack=True).collect(WAIT)
    wait_until(lambda: figures().items == before.items + 5, WAIT)
    assert figures().errors == before.errors


def test_nothing_is_left_in_redis_but_results_that_expire(stack, redis):
    def records() -> set[bytes]:
        return {*redis.scan_iter("graft:run:*"), *redis.scan_iter("graft:outcome:*")}

    before = records()  # Of calls that other tests killed; these expire.
    graft.submit(samples.square, range(100), batch_size=10).collect(WAIT)
    graft.submit(samples.square, range(100), reduce=samples.total).collect(WAIT)
    wait_until(lambda: redis.hlen("graft:unacked") == 0, what="all messages acknowledged")
    wait_until(lambda: records() <= before, what="run records and claims gone")
    for key in redis.scan_iter("celery-task*-meta-*"):
        assert redis.ttl(key) > 0, key


def test_messages_leave_quickly_and_look_as_if_kombu_had_sent_them(stack, redis):
    def sent() -> dict[str, Any]:
        batch = graft.submit(samples.square, range(3), queue="heavy", batch_size=3)
        wait_until(lambda: redis.llen("heavy\x06\x165") == 1, what="the message")
        message: dict[str, Any] = json.loads(redis.rpop("heavy\x06\x165"))
        batch.cancel()
        for name in ("id", "group", "root_id", "graft_sent_at", "graft_made_at", "graft_signature"):
            message["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag"):
            message["properties"].pop(name)
        message.pop("body")
        return message

    def seen(**_: Any) -> None:
        seen_by.append("before")

    seen_by: list[str] = []
    with held("heavy"):
        quick = sent()
        signals.before_task_publish.connect(seen)
        try:
            slow = sent()
        finally:
            signals.before_task_publish.disconnect(seen)
    assert seen_by == ["before"]
    assert quick == slow


def test_messages_are_celerys_own(stack, redis, monkeypatch):
    """What lies in the queue is a protocol 2 message that stock tools read; only its argument is sealed."""
    redis.delete("heavy")
    with held("heavy"):
        batch = graft.submit(samples.square, range(3), queue="heavy", batch_size=3)
        wait_until(lambda: redis.llen("heavy\x06\x165") == 1, what="the message")
        message = json.loads(redis.lindex("heavy\x06\x165", 0))
        assert message["content-type"] == "application/json"
        assert message["headers"]["task"] == "graft.batch"
        assert message["headers"]["group"] == batch.id
        assert message["headers"]["argsrepr"] == "(tests.samples:square, 3 items from 0)"
    assert batch.collect(WAIT) == [0, 1, 4]
