"""A.6, A.12: AsyncBatchProcessor."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import AsyncBatchProcessor
from graft.config.deployment import current
from graft.tasks.errors import PayloadTooLargeError, RemoteTraceback, UnpicklableError
from graft.tasks.policy import RetryPolicy
from tests import samples
from tests.stack import run_python, wait_until

LONG = 60.0  # A timeout that no test waits for.


def run(main):
    return asyncio.run(asyncio.wait_for(main, 30))


def doubling():
    """A handler that stays with the caller, and the batches it was given."""
    batches = []

    async def handler(items):
        batches.append(items)
        return [item * 2 for item in items]

    return handler, batches


async def add(processor, *items):
    return [await processor.add_item(item) for item in items]


async def soon(condition):
    await asyncio.to_thread(wait_until, condition)


# ---- when a batch goes out -------------------------------------------------------------------------------------------


def test_a_processor_keeps_its_two_figures():
    assert (AsyncBatchProcessor().batch_size, AsyncBatchProcessor().timeout) == (10, 1.0)
    assert (AsyncBatchProcessor(3, 0.5).batch_size, AsyncBatchProcessor(3, 0.5).timeout) == (3, 0.5)
    assert AsyncBatchProcessor().get_statistics() == {
        "total_batches": 0, "total_items": 0, "average_batch_size": 0,
    }  # fmt: skip


def test_the_item_that_fills_a_batch_has_it_handled_inside_its_own_call():
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(3, LONG)
        processor.set_handler(handler)
        first, second = await add(processor, 1, 2)
        assert not first.done()
        third = await processor.add_item(3)
        assert first.done()
        assert third.done()
        assert await asyncio.gather(first, second, third) == [2, 4, 6]
        assert batches == [[1, 2, 3]]
        assert isinstance(third, asyncio.Future)

    run(main())


@pytest.mark.parametrize("batch_size", [1, 0, -5])
def test_a_batch_size_of_one_or_less_handles_every_item_at_once(batch_size):
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(batch_size, LONG)
        processor.set_handler(handler)
        assert [future.result() for future in await add(processor, 1, 2)] == [2, 4]
        assert batches == [[1], [2]]

    run(main())


def test_a_timer_handles_what_no_further_item_fills():
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(10, 0.02)
        processor.set_handler(handler)
        futures = await add(processor, 1, 2)
        assert not any(future.done() for future in futures)
        assert await asyncio.gather(*futures) == [2, 4]
        assert batches == [[1, 2]]

    run(main())


def test_an_item_added_while_the_timers_batch_is_handled_has_a_timer_of_its_own():
    async def main():
        gate, batches = asyncio.Event(), []

        async def handler(items):
            batches.append(items)
            await gate.wait()
            return items

        processor = AsyncBatchProcessor(10, 0.01)
        processor.set_handler(handler)
        first = await processor.add_item(1)
        await soon(lambda: batches)
        second = await processor.add_item(2)
        await soon(lambda: len(batches) == 2)  # Overlapping the first, which still runs.
        gate.set()
        assert (await first, await second) == (1, 2)
        assert batches == [[1], [2]]

    run(main())


def test_a_timer_starts_with_the_first_item_of_its_own_batch():
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(2, 0.6)
        processor.set_handler(handler)
        loop = asyncio.get_running_loop()
        await processor.add_item(1)
        await asyncio.sleep(0.1)
        await processor.add_item(2)
        began = loop.time()
        await (await processor.add_item(3))
        assert loop.time() - began >= 0.59
        assert batches == [[1, 2], [3]]

    run(main())


def test_items_wait_for_a_handler_and_then_go_out_as_one_batch():
    async def main(by_timer):
        handler, batches = doubling()
        processor = AsyncBatchProcessor(2, 0.01 if by_timer else LONG)
        futures = await add(processor, 1, 2, 3, 4, 5)
        assert not any(future.done() for future in futures)
        processor.set_handler(handler)
        if not by_timer:
            futures += await add(processor, 6)
        assert await asyncio.gather(*futures) == [2 * item for item in range(1, len(futures) + 1)]
        assert len(batches) == 1

    run(main(by_timer=True))
    run(main(by_timer=False))


def test_a_handler_can_be_set_before_any_loop_runs_and_serve_one_after_the_other():
    handler, batches = doubling()
    processor = AsyncBatchProcessor(10, 0.01)
    processor.set_handler(handler)

    async def main(item):
        return await (await processor.add_item(item))

    assert [run(main(item)) for item in (1, 2, 3)] == [2, 4, 6]
    abandoned = run(processor.add_item(4))
    assert run(main(5)) == 10
    assert batches == [[1], [2], [3], [4, 5]]
    assert not abandoned.done()


def test_a_handler_set_by_another_thread_arms_the_timer_of_the_waiting_loop():
    async def main():
        handler, _ = doubling()
        processor = AsyncBatchProcessor(10, 0.01)
        future = await processor.add_item(1)
        threading.Thread(target=processor.set_handler, args=(handler,)).start()
        assert await future == 2

    run(main())


def test_processing_at_once_is_a_call_of_its_own():
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(10, LONG)
        assert await processor._process_batch() is None
        future = await processor.add_item(1)
        assert await processor._process_batch() is None
        assert not future.done()
        processor.set_handler(handler)
        assert await processor._process_batch() is None
        assert future.result() == 2
        await processor._process_batch()
        assert batches == [[1]]

    run(main())


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        [1, 2],
        (1, 2),
        {1: "a", 2: "b"},
        {1: "a", 2: "b"}.keys(),
        range(1, 3),
        [1, 2, 3],
        "12",
    ],
)
def test_any_iterable_is_paired_by_position_and_a_surplus_ignored(answers):
    async def main():
        captured = []

        async def handler(items):
            captured.append(items)
            return answers

        processor = AsyncBatchProcessor(2)
        processor.set_handler(handler)
        futures = await add(processor, "x", "y")
        assert [int(await future) for future in futures] == [1, 2]
        assert processor.get_statistics() == {"total_batches": 1, "total_items": 2, "average_batch_size": 2.0}

    run(main())


def test_an_error_of_the_handler_goes_to_every_future_of_its_batch_and_to_nobody_else():
    async def main():
        broken = OSError("gone")

        async def handler(items):
            if "bad" in items:
                raise broken
            return items

        processor = AsyncBatchProcessor(2)
        processor.set_handler(handler)
        failed = await add(processor, "bad", 1)
        assert [future.exception() for future in failed] == [broken, broken]
        assert [future.result() for future in await add(processor, 2, 3)] == [2, 3]
        assert processor.get_statistics()["total_batches"] == 1

    run(main())


@pytest.mark.parametrize("answer", [None, 5])
def test_an_answer_that_cannot_be_iterated_is_an_error(answer):
    async def main():
        processor = AsyncBatchProcessor(2, place="local")
        processor.set_handler(lambda items: answer)
        assert [type(future.exception()) for future in await add(processor, 1, 2)] == [TypeError, TypeError]
        assert processor.get_statistics()["total_batches"] == 0

    run(main())


def test_a_short_answer_is_an_error_for_those_it_leaves_out():
    async def main():
        processor = AsyncBatchProcessor(5, place="local")
        processor.set_handler(lambda items: items[:3])
        futures = await add(processor, *range(5))
        assert [future.result() for future in futures[:3]] == [0, 1, 2]
        for future in futures[3:]:
            assert "3 results for 5 items" in str(future.exception())
        assert processor.get_statistics()["total_batches"] == 0

    run(main())


def test_an_answer_that_breaks_half_way_answers_those_before():
    async def main():
        def handler(items):
            yield items[0]
            raise LookupError("half-way")

        processor = AsyncBatchProcessor(3, place="local")
        processor.set_handler(handler)
        first, *others = await add(processor, 1, 2, 3)
        assert first.result() == 1
        assert [str(future.exception()) for future in others] == ["half-way"] * 2

    run(main())


@pytest.mark.parametrize("is_failing", [True, False])
def test_a_future_that_its_owner_cancelled_is_skipped(is_failing):
    async def main():
        processor = AsyncBatchProcessor(3, place="local")
        processor.set_handler(lambda items: 1 / 0 if is_failing else items)
        first, second = await add(processor, 1, 2)
        first.cancel()
        third = await processor.add_item(3)
        assert first.cancelled()
        if is_failing:
            assert [type(future.exception()) for future in (second, third)] == [ZeroDivisionError] * 2
        else:
            assert [second.result(), third.result()] == [2, 3]

    run(main())


def test_a_handler_that_is_cancelled_cancels_its_futures():
    async def main():
        async def handler(items):
            raise asyncio.CancelledError

        processor = AsyncBatchProcessor(2, place="local")
        processor.set_handler(handler)
        futures = await add(processor, 1, 2)
        assert all(future.cancelled() for future in futures)

    run(main())


def test_cancelling_the_call_that_runs_the_handler_cancels_the_batch():
    async def main():
        gate = asyncio.Event()

        async def handler(items):
            await gate.wait()

        processor = AsyncBatchProcessor(2, place="local")
        processor.set_handler(handler)
        first = await processor.add_item(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processor.add_item(2), 0.02)
        assert first.cancelled()

    run(main())


def test_statistics_average_over_the_batches_that_were_answered():
    async def main():
        handler, _ = doubling()
        processor = AsyncBatchProcessor(3, 0.01)
        processor.set_handler(handler)
        await asyncio.gather(*await add(processor, 1, 2, 3, 4))
        assert processor.get_statistics() == {"total_batches": 2, "total_items": 4, "average_batch_size": 2.0}

    run(main())


@given(st.lists(st.integers(), max_size=40), st.integers(-1, 12))
def test_every_item_gets_its_own_answer(items, batch_size):
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(batch_size, LONG)
        processor.set_handler(handler)
        futures = await add(processor, *items)
        await processor.close()
        assert [future.result() for future in futures] == [item * 2 for item in items]
        assert [item for batch in batches for item in batch] == items

    run(main())


# ---- flush, close, retry ---------------------------------------------------------------------------------------------


def test_flushing_waits_for_everything_that_was_added():
    async def main():
        gate, captured = asyncio.Event(), []

        async def handler(items):
            captured.append(items)
            await gate.wait()
            return items

        processor = AsyncBatchProcessor(10, 0.01)
        processor.set_handler(handler)
        running = await processor.add_item(1)
        await soon(lambda: captured)
        waiting = await processor.add_item(2)
        flushing = asyncio.ensure_future(processor.flush())
        await soon(lambda: len(captured) == 2)
        assert not flushing.done()
        gate.set()
        await flushing
        assert (running.result(), waiting.result()) == (1, 2)

    run(main())


def test_a_closed_processor_accepts_nothing_and_leaves_no_future_pending():
    async def main():
        processor = AsyncBatchProcessor()
        future = await processor.add_item(1)
        await processor.close()
        assert future.cancelled()
        with pytest.raises(RuntimeError, match="closed"):
            await processor.add_item(2)

    run(main())


def test_a_batch_can_be_retried():
    async def main(retry):
        attempts = []

        async def handler(items):
            attempts.append(items)
            if len(attempts) < 3:
                raise ConnectionError("not yet")
            return items

        processor = AsyncBatchProcessor(1, retry=retry)
        processor.set_handler(handler)
        return await processor.add_item(1)

    assert run(main(RetryPolicy(runs=3, base=0.0))).result() == 1
    assert str(run(main(None)).exception()) == "not yet"


# ---- on the workers --------------------------------------------------------------------------------------------------


def pids(items):
    return [os.getpid() for _ in items]


async def async_pids(items):
    return pids(items)


def squares_as_they_come(items):
    return (samples.square(item) for item in items)


def keys_of_a_mapping(items):
    return dict.fromkeys(items).keys()


def break_off(items):
    yield items[0]
    raise samples.Unpicklable("half-way")


def fail(items):
    raise samples.Detailed(7, reason="as asked")


def handle(handler, *items):
    async def main():
        processor = AsyncBatchProcessor(len(items))
        processor.set_handler(handler)
        return await add(processor, *items)

    return run(main())


@pytest.mark.parametrize("handler", [pids, async_pids, lambda items: [__import__("os").getpid() for _ in items]])
def test_a_handler_that_can_travel_runs_on_a_worker_once_for_a_batch(stack, handler):
    (worker,) = {future.result() for future in handle(handler, 1, 2, 3)}
    assert worker != os.getpid()


@pytest.mark.parametrize(
    ("handler", "values"), [(squares_as_they_come, [1, 4, 9]), (keys_of_a_mapping, [1, 2, 3]), (set, [1, 2, 3])]
)
def test_answers_that_cannot_travel_are_read_where_they_are_made(stack, handler, values):
    assert [future.result() for future in handle(handler, 1, 2, 3)] == values


def test_errors_come_back_from_the_workers(stack):
    for future in handle(fail, 1, 2):
        error = future.exception()
        assert type(error) is samples.Detailed
        assert (error.code, error.reason) == (7, "as asked")
        assert isinstance(error.__cause__, RemoteTraceback)
    first, second = handle(break_off, 1, 2)
    assert first.result() == 1
    assert str(second.exception()) == "half-way"


def test_items_that_cannot_travel_keep_the_handler_here(stack):
    assert [future.result() for future in handle(pids, threading.Lock(), 2)] == [os.getpid()] * 2


# ---- kept until answered ---------------------------------------------------------------------------------------------

KEY = "graft:compat:batch:"

LEAVE = """
import asyncio, os
from graft.compat.async_worker_optimization import AsyncBatchProcessor

async def main():
    processor = AsyncBatchProcessor(10, name="left")
    for item in [(1, "a"), {2}, None]:
        await processor.add_item(item)
    os._exit(0)

asyncio.run(main())
"""


def test_items_of_a_process_that_died_are_recovered_in_their_order(redis_stack, redis):
    run_python(redis_stack, LEAVE).check_returncode()
    assert redis.hlen(KEY + "left") == 3

    async def main():
        captured = []

        async def handler(items):
            captured.append(items)
            return items

        processor = AsyncBatchProcessor(10, LONG, name="left")
        processor.set_handler(handler)
        futures = await processor.recover()
        futures.append(await processor.add_item("new"))
        assert await AsyncBatchProcessor(name="other").recover() == []
        await processor.close()
        assert [await future for future in futures] == [(1, "a"), {2}, None, "new"]
        assert captured == [[(1, "a"), {2}, None, "new"]]

    run(main())
    assert redis.hlen(KEY + "left") == 0


def test_what_was_taken_over_cannot_be_taken_twice(redis):
    async def main():
        first, second, third = (AsyncBatchProcessor(name="twice") for _ in range(3))
        await add(first, 1, 2)
        assert len(await second.recover()) == 2
        assert await second.recover() == []
        await second.close()
        await first.close()
        assert len(await third.recover()) == 2  # Closed without a handler: still unanswered.

    run(main())


def test_items_are_kept_in_the_order_of_concurrent_adding(redis):
    async def main():
        handler, batches = doubling()
        processor = AsyncBatchProcessor(50, LONG, name="ordered")
        processor.set_handler(handler)
        futures = await asyncio.gather(*(processor.add_item(item) for item in range(50)))
        assert [await future for future in futures] == [2 * item for item in range(50)]
        assert batches == [list(range(50))]

    run(main())
    assert redis.hlen(KEY + "ordered") == 0


def test_an_error_is_an_answer_and_a_cancelled_wait_is_none(redis):
    async def main():
        gate = asyncio.Event()

        async def handler(items):
            if items == ["wait"]:
                await gate.wait()
            raise OSError("no")

        processor = AsyncBatchProcessor(1, name="answered")
        processor.set_handler(handler)
        assert str((await processor.add_item("fail")).exception()) == "no"
        assert redis.hlen(KEY + "answered") == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processor.add_item("wait"), 0.1)
        assert redis.hlen(KEY + "answered") == 1

    run(main())


@pytest.mark.parametrize(
    ("item", "error"), [(threading.Lock(), UnpicklableError), (b"x" * (5 << 20), PayloadTooLargeError)]
)
def test_an_item_that_cannot_be_kept_is_refused(redis, item, error):
    with pytest.raises(error):
        run(AsyncBatchProcessor(name="refusing").add_item(item))


def test_local_mode_and_nameless_processors_keep_nothing(monkeypatch, redis):
    assert run(AsyncBatchProcessor().recover()) == []
    monkeypatch.setenv("GRAFT_MODE", "local")
    current.reread_settings()
    try:
        handler, _ = doubling()
        processor = AsyncBatchProcessor(1, name="here")
        processor.set_handler(handler)
        assert run(processor.add_item(1)).result() == 2
        assert not redis.exists(KEY + "here")
    finally:
        monkeypatch.undo()
        current.reread_settings()
