"""D.7: channels, bounded pipelines and their metrics."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.compat.async_patterns import ChannelClosedError, PipelineMetrics, bounded_pipeline, channel, on_workers
from graft.tasks.errors import UnpicklableError
from graft.tasks.shared.primitive import DifferentLimitsError
from tests import samples
from tests.compat.async_patterns.programs import program


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.redis)])
def name(request):
    if request.param == "local":
        return None
    request.getfixturevalue("redis_stack")
    return f"test {uuid4()}"


# ---- channels --------------------------------------------------------------------------------------------------------


def test_capacity_is_the_free_room(name):
    async def main():
        sender, receiver = channel(32, name=name)
        assert sender.capacity() == 32
        await sender.send("one")
        assert sender.capacity() == 31
        assert await receiver.recv() == "one"
        assert sender.capacity() == 32

    run(main())


def test_a_full_channel_makes_senders_wait_and_the_end_comes_after_the_last_value(name):
    async def main():
        sender, receiver = channel(2, name=name)
        sent = []

        async def produce():
            async with sender:
                for number in range(6):
                    await sender.send(number)
                    sent.append(number)

        producing = asyncio.ensure_future(produce())
        done, _ = await asyncio.wait([producing], timeout=0.15)
        assert not done
        assert sent == [0, 1]
        assert [value async for value in receiver] == list(range(6))
        await producing
        assert sender.waits > 0
        assert await receiver.recv() is None
        assert await receiver.recv("end") == "end"

    run(main())


def test_the_channel_is_open_until_every_clone_is_closed(name):
    async def main():
        sender, receiver = channel(4, name=name)
        clone = sender.clone()
        await sender.send(None)
        sender.close()
        with pytest.raises(ChannelClosedError):
            await sender.send("late")
        await clone.send(2)
        clone.close()
        assert [value async for value in receiver] == [None, 2]

    run(main())


def test_sending_to_a_receiver_that_has_gone_fails(name):
    async def main():
        sender, receiver = channel(1, name=name)
        await sender.send(1)
        assert await receiver.recv() == 1
        await sender.send(2)
        waiting = asyncio.ensure_future(sender.send(3))
        await asyncio.sleep(0)
        receiver.close()
        with pytest.raises(ChannelClosedError):
            await waiting
        assert await receiver.recv("end") == "end"

    run(main())


def test_forgetting_an_end_closes_it():
    async def main():
        sender, receiver = channel(1)
        del sender
        gc.collect()
        assert await receiver.recv("end") == "end"
        sender, receiver = channel(1)
        del receiver
        gc.collect()
        with pytest.raises(ChannelClosedError):
            await sender.send(1)

    run(main())


def test_a_sender_that_gives_up_blocks_nobody():
    async def main():
        sender, receiver = channel(1)
        await sender.send(1)
        first, second = (asyncio.ensure_future(sender.send(number)) for number in (2, 3))
        await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert await receiver.recv() == 1
        assert await receiver.recv() == 3
        await second

    run(main())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 25), st.integers(1, 3))
def test_every_value_arrives_once_and_in_its_senders_order(capacity, senders, values, receivers):
    async def main():
        sender, receiver = channel(capacity)
        got = []

        async def produce(number, own):
            async with own:
                for value in range(values):
                    await own.send((number, value))
                    assert own.capacity() >= 0

        async def consume():
            got.append([value async for value in receiver])

        producing = [produce(number, sender.clone()) for number in range(senders)]
        sender.close()
        await asyncio.gather(*producing, *(consume() for _ in range(receivers)))
        everything = sorted(value for part in got for value in part)
        assert everything == [(number, value) for number in range(senders) for value in range(values)]
        for part in got:
            for number in range(senders):
                own = [value for sender_, value in part if sender_ == number]
                assert own == sorted(own)

    run(main())


PRODUCER = """
import asyncio, sys
from graft.compat.async_patterns import channel
async def main():
    sender, _ = channel(3, name={name!r}, lease=1.0)
    for number in range(10):
        await sender.send((number, {{"number": number}}))
    print("sent", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


def test_processes_share_a_channel_and_a_killed_sender_has_closed_it(redis_stack):
    name = str(uuid4())

    async def main():
        _, receiver = channel(3, name=name, lease=1.0)
        with program(redis_stack, PRODUCER.format(name=name)) as producer:
            got = [await receiver.recv() for _ in range(10)]
            assert got == [(number, {"number": number}) for number in range(10)]
            assert await asyncio.to_thread(producer.stdout.readline) == "sent\n"
            last = asyncio.ensure_future(receiver.recv("end"))
            done, _ = await asyncio.wait([last], timeout=1.5)
            assert not done
            producer.kill()
            assert await last == "end"

    run(main())


def test_bad_input_to_a_channel_is_told(redis_stack):
    async def main():
        for capacity in (0, -1):
            with pytest.raises(ValueError, match="at least 1"):
                channel(capacity)
        name = str(uuid4())
        sender, _ = channel(2, name=name)
        await sender.send(1)
        with pytest.raises(DifferentLimitsError, match="capacity 2"):
            await channel(3, name=name)[0].send(1)
        with pytest.raises(UnpicklableError):
            await sender.send(asyncio.get_running_loop())

    run(main())


# ---- pipelines -------------------------------------------------------------------------------------------------------


def parse(text):
    return int(text)


def test_a_hundred_documents_go_through_in_order_and_the_unreadable_are_counted():
    async def double(number):
        return number * 2

    async def main():
        pipeline = bounded_pipeline([parse, double, lambda n: f"Processed: {n}"], [64, 32, 16])
        assert await pipeline.run(map(str, range(100))) == [f"Processed: {2 * n}" for n in range(100)]
        assert pipeline.metrics.stage1_skipped == 0
        again = bounded_pipeline([parse, double, str], [64, 32, 16])
        assert await again.run(["1", "x", "2", "y"]) == ["2", "4"]
        assert (again.metrics.stage1_processed, again.metrics.stage1_skipped) == (2, 2)
        assert again.metrics.stage3_processed == 2

    run(main())


def test_the_metrics_of_a_thousand_items():
    lines = []

    async def five(item):
        await asyncio.sleep(0.005)
        return item

    async def ten(item):
        await asyncio.sleep(0.010)
        return item

    async def main():
        began, before = time.monotonic(), asyncio.all_tasks()
        pipeline = bounded_pipeline([samples.identity, five, ten], [32, 16, 1], report=lines.append)
        assert await pipeline.run(range(1000)) == list(range(1000))
        assert time.monotonic() - began >= 10
        metrics = pipeline.metrics
        assert metrics.stage1_processed == metrics.stage2_processed == metrics.stage3_processed == 1000
        assert metrics.stage1_backpressure > 0
        assert metrics.stage2_backpressure > 0
        assert lines[-1] == metrics.report()
        assert len(lines) >= 10
        names = [part.split(":")[0] for part in metrics.report().split(" | ")]
        assert names == ["S1", "S2", "S3", "BP1", "BP2"]
        assert asyncio.all_tasks() == before

    run(main())


def test_a_stage_that_fails_ends_the_pipeline_and_one_that_is_left_stops():
    async def main():
        pipeline = bounded_pipeline([samples.identity, raise_key_error_at_three, str], [1, 1, 1])
        with pytest.raises(KeyError, match="3"):
            await pipeline.run(range(1000))
        pipeline = bounded_pipeline([samples.identity, str], [2, 2])
        stream = pipeline.stream(range(10_000))
        assert await stream.take(3).collect() == ["0", "1", "2"]
        await stream.aclose()
        assert pipeline.metrics.stage1_processed < 20

    run(main())


def raise_key_error_at_three(item):
    if item == 3:
        raise KeyError(3)
    return item


def test_a_source_that_raises_ends_the_pipeline():
    def broken():
        yield 1
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        run(bounded_pipeline([str], [1]).run(broken()))


def test_pipelines_that_cannot_work_are_refused():
    for stages, capacities in (([], []), ([str], []), ([str], [0])):
        with pytest.raises(ValueError):
            bounded_pipeline(stages, capacities)
    with pytest.raises(AttributeError, match="stage4"):
        _ = PipelineMetrics(3).stage4_processed


def test_a_stage_may_run_on_the_workers(stack):
    async def main():
        pipeline = bounded_pipeline([on_workers(samples.square_slowly_if_even), str], [4, 4])
        assert await pipeline.run(range(8)) == [str(x * x) for x in range(8)]

    run(main())
