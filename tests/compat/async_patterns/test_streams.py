"""D.1 and D.2: streams, bounded concurrency on them, the dynamic set."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_patterns import FuturesUnordered, JoinSet, Stream, channel, countdown, on_workers, pages, primes
from tests import samples


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


class Bound:
    """Counts how many run at once."""

    def __init__(self):
        self.running = self.highest = 0

    async def work(self, seconds, value=None):
        self.running += 1
        self.highest = max(self.highest, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        return value


# ---- one at a time ---------------------------------------------------------------------------------------------------


def test_the_squares_of_the_even_numbers_add_up_to_220():
    async def main():
        squares = Stream(range(1, 11)).filter(lambda x: x % 2 == 0).map(lambda x: x * x)
        assert await squares.fold(0, lambda total, x: total + x) == 220
        kept = Stream(range(1, 11)).filter_map(lambda x: x * x if x % 2 == 0 else None)
        assert await kept.fold(0, add_later) == 220
        assert await Stream([]).fold("start", add_later) == "start"

    run(main())


async def add_later(a, b):
    return a + b


def test_predicates_and_functions_may_be_async():
    async def odd(x):
        return x % 2

    async def twice(x):
        return 2 * x if x else None

    async def main():
        assert await Stream(range(5)).filter(odd).collect() == [1, 3]
        assert await Stream(range(3)).filter_map(twice).collect() == [2, 4]

    run(main())


def test_then_runs_one_after_the_other():
    bound = Bound()

    async def main():
        began = time.monotonic()
        got = await Stream("abc").then(lambda x: bound.work(0.05, f"processed_{x}")).collect()
        assert got == ["processed_a", "processed_b", "processed_c"]
        assert bound.highest == 1
        assert time.monotonic() - began >= 0.14

    run(main())


def test_take_does_not_pull_one_more():
    pulled = []

    def numbers():
        for number in range(100):
            pulled.append(number)
            yield number

    async def main():
        stream = Stream(numbers())
        assert pulled == []
        assert await stream.take(3).collect() == [0, 1, 2]
        assert pulled == [0, 1, 2]
        assert await stream.take(0).collect() == []
        with pytest.raises(ValueError, match="count=-1"):
            stream.take(-1)

    run(main())


def test_chain_zip_enumerate_and_flat_map():
    async def main():
        assert await Stream([1, 2, 3]).chain([4, 5, 6]).collect() == [1, 2, 3, 4, 5, 6]
        people = await Stream(["Alice", "Bob", "Carol"]).zip(Stream([30, 25, 35, 99])).collect()
        assert people == [("Alice", 30), ("Bob", 25), ("Carol", 35)]
        assert await Stream("ab").enumerate().collect() == [(0, "a"), (1, "b")]
        assert await Stream([1, 2, 3]).flat_map(range).collect() == [0, 0, 1, 0, 1, 2]
        assert await Stream([1, 2]).flat_map(lambda n: Stream(["x"] * n)).collect() == ["x"] * 3

    run(main())


def test_scan_gives_running_sums_and_ends_with_none():
    async def main():
        sums = Stream(range(1, 6)).scan(0, lambda total, x: (total + x, total + x))
        assert await sums.collect() == [1, 3, 6, 10, 15]
        until = Stream(range(1, 6)).scan(0, lambda total, x: None if x == 4 else (total + x, total + x))
        assert await until.collect() == [1, 3, 6]

    run(main())


@given(st.lists(st.integers(), max_size=60), st.integers(1, 12))
def test_chunks_hold_everything_in_order_and_none_is_empty(items, size):
    async def main():
        chunks = await Stream(items).chunks(size).collect()
        assert [x for chunk in chunks for x in chunk] == items
        assert all(len(chunk) == size for chunk in chunks[:-1])
        assert all(chunks)

    run(main())


def test_next_for_each_and_the_end():
    async def main():
        stream = Stream([1, 2, 3])
        assert await stream.next() == 1
        seen = []
        await stream.for_each(seen.append)
        assert seen == [2, 3]
        assert await stream.next() is None
        assert await stream.next("end") == "end"
        with pytest.raises(TypeError, match="iterable"):
            Stream(5)

    run(main())


def test_an_interval_ticks_at_once_and_then_regularly():
    async def main():
        began = time.monotonic()
        assert await Stream.interval(0.1).take(5).collect() == [0, 1, 2, 3, 4]
        assert time.monotonic() - began >= 0.39

    run(main())


def test_a_stream_from_a_channel_ends_with_it():
    async def main():
        sender, receiver = channel(4)

        async def produce():
            async with sender:
                for number in range(20):
                    await sender.send(number)

        producing = asyncio.ensure_future(produce())
        stream = Stream.from_channel(receiver).filter(lambda x: x % 3 == 0).map(lambda x: x * 10)
        assert await stream.take(4).collect() == [0, 30, 60, 90]
        assert await stream.collect() == [120, 150, 180]
        await producing

    run(main())


def test_the_generators_of_the_chapter():
    asked = []

    def fetch(number, total=120, per_page=50):
        asked.append(number)
        start = (number - 1) * per_page
        return list(range(total))[start : start + per_page]

    async def main():
        assert await primes(50).collect() == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]
        assert await countdown(5, pause=0).collect() == [5, 4, 3, 2, 1, 0]
        assert [len(page) for page in await pages(fetch, pause=0).collect()] == [50, 50, 20]
        assert asked == [1, 2, 3]
        assert [len(page) for page in await pages(lambda n: fetch(n, total=100), pause=0).collect()] == [50, 50]

    run(main())


# ---- several at once -------------------------------------------------------------------------------------------------


def fetch_id(bound):
    return lambda number: bound.work(0.2 if number % 2 == 0 else 0.05, number)


def test_buffered_keeps_the_order_and_the_bound():
    bound = Bound()

    async def main():
        began = time.monotonic()
        assert await Stream(range(1, 7)).map(fetch_id(bound)).buffered(3).collect() == [1, 2, 3, 4, 5, 6]
        assert bound.highest == 3
        assert time.monotonic() - began >= 0.35

    run(main())


def test_finished_elements_that_wait_for_their_turn_count_into_the_bound():
    started = []
    gate = []

    async def work(number):
        started.append(number)
        if number == 0:
            await gate[0].wait()
        return number

    async def main():
        gate.append(asyncio.Event())
        taking = asyncio.ensure_future(Stream(range(10)).map(work).buffered(3).collect())
        for _ in range(100):
            await asyncio.sleep(0)
        assert started == [0, 1, 2]
        gate[0].set()
        assert await taking == list(range(10))

    run(main())


def test_buffer_unordered_gives_what_completes_first():
    bound = Bound()

    async def main():
        got = await Stream(range(1, 7)).map(fetch_id(bound)).buffer_unordered(3).collect()
        assert got == [1, 3, 5, 2, 4, 6]
        assert bound.highest == 3

    run(main())


def test_twenty_pages_five_at_a_time():
    bound = Bound()

    async def main():
        began = time.monotonic()
        got = await Stream(range(20)).map(lambda page: bound.work(0.1, page)).buffer_unordered(5).collect()
        assert sorted(got) == list(range(20))
        assert bound.highest == 5
        assert time.monotonic() - began >= 0.38

    run(main())


@pytest.mark.parametrize("method", ["buffered", "buffer_unordered"])
def test_what_raises_ends_the_stream_and_what_runs_is_cancelled(method):
    bound = Bound()

    async def work(number):
        if number == 3:
            raise ValueError("three")
        return await bound.work(0 if number < 3 else 60, number)

    async def main():
        got = []
        with pytest.raises(ValueError, match="three"):
            await getattr(Stream(range(10)).map(work), method)(4).for_each(got.append)
        assert got == [0, 1, 2] or method == "buffer_unordered"
        assert bound.running == 0

    run(main())


@pytest.mark.parametrize("method", ["buffered", "buffer_unordered"])
def test_an_error_of_the_source_comes_after_what_came_before_it(method):
    def numbers():
        yield 1
        yield 2
        raise KeyError("source")

    async def main():
        got = []
        with pytest.raises(KeyError, match="source"):
            await getattr(Stream(numbers()).map(samples.async_identity), method)(5).for_each(got.append)
        assert got == [1, 2]

    run(main())


@pytest.mark.parametrize("method", ["buffered", "buffer_unordered"])
def test_a_stream_left_early_leaves_nothing_running(method):
    bound = Bound()

    async def main():
        stream = getattr(Stream(range(1000)).map(lambda x: bound.work(0 if x == 0 else 60, x)), method)(5)
        assert await anext(stream) == 0
        await stream.aclose()
        assert bound.running == 0

    run(main())


def test_a_slow_source_holds_nothing_back():
    async def slow():
        yield 1
        await asyncio.Event().wait()

    async def main():
        stream = Stream(slow()).map(samples.async_identity).buffered(5)
        assert await anext(stream) == 1
        await stream.aclose()

    run(main())


@pytest.mark.parametrize(("limit", "highest"), [(3, 3), (None, 10), (0, 10)])
def test_for_each_concurrent_is_bounded_as_asked(limit, highest):
    bound = Bound()

    async def main():
        await Stream(range(10)).for_each_concurrent(limit, lambda x: bound.work(0.5))
        assert bound.highest == highest

    run(main())


def test_an_error_in_for_each_concurrent_rises():
    async def main():
        with pytest.raises(ValueError, match="no 0"):
            await Stream(range(3)).for_each_concurrent(2, samples.async_raise_value_error)

    run(main())


@pytest.mark.parametrize("limit", [0, -1])
def test_a_bound_that_allows_nothing_is_refused(limit):
    with pytest.raises(ValueError, match="at least 1"):
        Stream([]).buffered(limit)
    with pytest.raises(ValueError, match="at least 1"):
        Stream([]).buffer_unordered(limit)
    with pytest.raises(ValueError, match="at least 1"):
        Stream([]).chunks(limit)


def test_an_endless_stream_is_read_lazily():
    pulled = []

    def numbers():
        while True:
            pulled.append(1)
            yield len(pulled)

    async def main():
        stream = Stream(numbers()).map(samples.async_identity).buffered(50)
        assert await stream.take(100).collect() == list(range(1, 101))
        await stream.aclose()
        assert len(pulled) <= 151

    run(main())


@pytest.mark.timeout(60)
def test_primes_try_divisors_up_to_the_square_root_only():
    """Up to the number itself it would be four thousand million divisions."""
    assert len(run(primes(300_000).collect())) == 25_997


# ---- the dynamic set -------------------------------------------------------------------------------------------------


def test_the_set_grows_while_its_results_are_taken():
    async def main():
        running = FuturesUnordered()
        running.add(samples.async_identity(1))
        running.add(samples.async_identity(2))
        got = []
        async for result in running:
            got.append(result)
            if result < 5:
                running.add(samples.async_identity(result + 10))
        assert got[:2] == [1, 2]
        assert sorted(got) == [1, 2, 11, 12]
        assert await running.next() is None

    run(main())


def test_a_join_set_counts_raises_in_turn_and_cancels_when_left():
    bound = Bound()

    async def main():
        async with JoinSet() as tasks:
            tasks.spawn(samples.async_raise_value_error("one"))
            tasks.spawn(samples.async_identity(2))
            tasks.spawn(bound.work(60))
            assert len(tasks) == tasks.active == 3
            outcomes = []
            for _ in range(2):
                try:
                    outcomes.append(await tasks.join_next())
                except ValueError as error:
                    outcomes.append(str(error))
            assert sorted(map(str, outcomes)) == ["2", "no one"]
            assert len(tasks) == 1
        assert bound.running == 0

    run(main())


# ---- on the workers --------------------------------------------------------------------------------------------------


def test_elements_may_be_calls_for_the_cluster(stack):
    async def main():
        call = on_workers(samples.square_slowly_if_even)
        assert await Stream(range(12)).map(call).buffered(4).collect() == [x * x for x in range(12)]
        ids = await Stream(range(4)).map(on_workers(samples.process_id)).buffer_unordered(2).collect()
        assert os.getpid() not in ids

    run(main())
