"""D.8: fan-out, map-reduce, batches; in the caller and on the workers."""

from __future__ import annotations

import asyncio
import math
import os
import time
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.compat.async_patterns import Semaphore, batch_process, fan_out_fan_in, map_reduce, word_count
from graft.compat.call_report import calls
from tests import samples

TEXTS = ["hello world hello rust", "rust is fast and hello world", "async rust is awesome hello"]
COUNTS = [
    ("hello", 4), ("rust", 3), ("is", 2), ("world", 2), ("and", 1), ("async", 1), ("awesome", 1), ("fast", 1),
]  # fmt: skip


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.worker)])
def place(request):
    if request.param == "cluster":
        request.getfixturevalue("stack")
    return request.param


def lines(worker, items):
    return [f"Worker{worker}: processed item {item}" for item in items]


def test_a_hundred_items_over_four_workers(place):
    began = time.monotonic()
    got = run(fan_out_fan_in(range(100), 4, place=place))
    assert sorted(got) == sorted(line for w in range(4) for line in lines(w, range(25 * w, 25 * w + 25)))
    assert time.monotonic() - began >= 1.2
    for worker in range(4):  # In sequence inside a chunk.
        own = [line for line in got if line.startswith(f"Worker{worker}:")]
        assert own == lines(worker, range(25 * worker, 25 * worker + 25))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12))
def test_chunks_are_consecutive_and_at_most_as_many_as_workers(count, workers):
    size = math.ceil(count / workers) if count else 1
    seen = []

    async def note(item):
        seen.append(item)
        await asyncio.sleep(0)
        return item

    got = run(fan_out_fan_in(range(count), workers, note, place="local"))
    assert sorted(got) == list(range(count))
    assert len({item // size for item in got}) <= workers


@pytest.mark.parametrize(("count", "sizes"), [(10, [3, 3, 3, 1]), (9, [3, 3, 3]), (0, [])])
def test_the_chunks_of_the_chapter(count, sizes):
    got = run(fan_out_fan_in(range(count), 4, place="local"))
    by_worker = [sum(line.startswith(f"Worker{w}:") for line in got) for w in range(4)]
    assert [size for size in by_worker if size] == sizes


def test_a_function_of_the_callers_own_runs_on_the_workers(stack):
    calls().clear()
    assert os.getpid() not in run(fan_out_fan_in(range(4), 2, samples.process_id))
    assert sorted(run(fan_out_fan_in(range(9), 4, samples.async_square))) == [x * x for x in range(9)]
    assert sorted(run(fan_out_fan_in(range(5), 2, lambda x: x + 1))) == [1, 2, 3, 4, 5]
    assert {row.where for row in calls().rows()} == {"cluster"}


def test_what_captures_the_callers_state_stays_with_it():
    seen = []
    assert run(fan_out_fan_in([1, 2], 1, lambda x: seen.append(x) or x)) == [1, 2]
    assert seen == [1, 2]


def test_the_first_error_of_a_chunk_rises(place):
    with pytest.raises(ValueError, match="1 is odd"):
        run(fan_out_fan_in(range(2), 1, samples.raise_value_error_if_odd, place=place))


def test_a_thousand_items_in_fifties(place):
    got = run(batch_process(range(1, 1001), 50, 10, place=place))
    assert sorted(got) == sorted(f"processed_{i}" for i in range(1, 1001))
    numbers = [int(entry.partition("_")[2]) for entry in got]
    for start in range(0, 1000, 50):  # Whole batches, in order inside.
        assert numbers[start : start + 50] == list(range(numbers[start], numbers[start] + 50))


def test_batches_come_as_they_complete_and_are_bounded():
    running, highest = [], []

    async def work(item):
        running.append(item)
        highest.append(len(running))
        await asyncio.sleep(0.2 if item == 0 else 0.01)
        running.remove(item)
        return item

    assert run(batch_process(range(6), 1, 2, work, place="local")) == [1, 2, 3, 4, 5, 0]
    assert max(highest) == 2


def test_batches_keep_to_a_shared_limit(stack):
    semaphore = Semaphore(1, name=str(uuid4()))
    assert sorted(run(batch_process(range(8), 2, 4, samples.square, limit=semaphore))) == sorted(
        x * x for x in range(8)
    )


def test_the_words_of_three_texts(place):
    assert run(word_count(TEXTS, place=place)) == COUNTS
    assert run(word_count([], place=place)) == []


def test_map_and_reduce_may_be_async(place):
    got = run(map_reduce([1, 2, 3, 4], by_parity, collect_all, place=place))
    assert got == {"odd": [1, 3], "even": [2, 4]}


async def by_parity(number):
    return [("even" if number % 2 == 0 else "odd", number)]


async def collect_all(key, values):
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=6))
def test_words_are_counted_as_python_counts_them(texts):
    from collections import Counter

    counted = Counter(word for text in texts for word in text.split())
    assert dict(run(word_count(texts, place="local"))) == dict(counted)


def test_every_input_is_mapped_before_a_key_is_reduced():
    log = []

    async def mapped(item):
        await asyncio.sleep(0.001 * item)
        log.append("map")
        return [(item % 3, item)]

    async def reduced(key, values):
        log.append("reduce")
        return sum(values)

    assert run(map_reduce(range(9), mapped, reduced, place="local")) == {0: 9, 1: 12, 2: 15}
    assert log == ["map"] * 9 + ["reduce"] * 3


@pytest.mark.parametrize("call", [lambda: fan_out_fan_in([1], 0), lambda: batch_process([1], 0, 1),
                                  lambda: batch_process([1], 1, 0)])  # fmt: skip
def test_counts_below_one_are_refused(call):
    with pytest.raises(ValueError, match="at least 1"):
        run(call())
