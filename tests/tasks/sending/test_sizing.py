from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from graft.tasks.sending.sizing import (
    FIRST_ITEMS,
    IN_FLIGHT_BYTES,
    PATIENT,
    UNKNOWN_ITEMS,
    UNREAD,
    Pace,
    Room,
    Run,
    SendingRules,
    SendingState,
    Sizing,
)

sizings = st.builds(
    Sizing,
    seconds=st.floats(0.001, 10),
    max_items=st.integers(1, 50_000),
    max_bytes=st.integers(1024, 1 << 22),
    concurrency=st.integers(1, 500),
)
paces = st.builds(
    Pace, items=st.floats(0, 1e6), seconds=st.floats(0, 100), size=st.floats(0, 1 << 21), waiting=st.floats(0, 1)
)


@given(sizing=sizings, pace=paces, remaining=st.none() | st.integers(1, 10**6), slots=st.integers(1, 256))
def test_a_size_stays_within_its_bounds(sizing, pace, remaining, slots):
    size = sizing.next_size(pace, remaining, slots)
    assert 1 <= size <= sizing.max_items
    if remaining is not None:
        assert size <= remaining
    if pace.size and size > 1:
        assert size * pace.size <= sizing.max_bytes


@given(sizing=sizings, remaining=st.integers(1, 10**6), slots=st.integers(1, 256))
def test_an_unknown_callable_starts_small(sizing, remaining, slots):
    assert sizing.next_size(Pace(), remaining, slots) <= max(FIRST_ITEMS, 2 * sizing.concurrency)


@given(pace=paces, total=st.integers(1, 20_000), slots=st.integers(1, 16))
def test_every_item_is_sent_and_the_tail_gets_smaller(pace, total, slots):
    sizing = Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20)
    remaining, sizes = total, []
    while remaining:
        sizes.append(sizing.next_size(pace, remaining, slots))
        remaining -= sizes[-1]
    assert sum(sizes) == total
    assert sizes == sorted(sizes, reverse=True)


@given(items=st.integers(1, 10**6), size=st.integers(1, 1 << 26), pace=paces)
def test_a_stream_waits_within_its_items_and_bytes(items, size, pace):
    taken = Room(items, size).taken_by(pace)
    assert 1 <= taken <= items
    assert taken == 1 or not pace.items or taken * pace.size <= size
    assert pace.items or taken <= UNKNOWN_ITEMS


def test_an_envelope_holds_about_the_work_that_was_asked_for():
    sizing = Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20)
    assert sizing.next_size(Pace(items=10_000, seconds=0.001, size=10), None, 2) == 100


def test_a_pace_follows_what_was_measured_last():
    pace = Pace().updated(Run(10, busy=1.0, elapsed=1.0), size=1000)
    assert (pace.items, pace.seconds, pace.size) == (10, 0.1, 100)
    slower = pace.updated(Run(10, busy=10.0, elapsed=10.0), size=1000)
    assert 0.1 < slower.seconds < 1.0
    assert slower.items == 20
    assert slower.updated(Run(0, busy=5.0, elapsed=5.0), size=5) == slower


@given(
    run=st.builds(
        Run,
        items=st.integers(1, 1000),
        busy=st.floats(0, 1e4),
        elapsed=st.floats(0, 1e4),
        concurrency=st.integers(1, 1000),
    )
)
def test_the_overlap_is_a_share(run):
    assert 0 <= run.overlap <= 1


def test_items_that_wait_fill_their_envelope_and_items_that_compute_do_not():
    sizing = Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20, concurrency=100)
    waiting = Pace().updated(Run(100, busy=100.0, elapsed=1.0, concurrency=100), size=1000)
    computing = Pace().updated(Run(100, busy=1.0, elapsed=1.0, concurrency=100), size=1000)
    assert sizing.next_size(waiting, None, 2) == 100
    assert sizing.next_size(computing, None, 2) == 10


WAITING = Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20, concurrency=10)


def dealt(pace: Pace, total: int, slots: int) -> list[int]:
    """Sizes of all envelopes, when *slots* of them leave at a time and all are done before the next leave."""
    sizes: list[int] = []
    while total:
        flying = 0
        for _ in range(slots):
            if total:
                sizes.append(WAITING.next_size(pace, total, slots, flying))
                flying += sizes[-1]
                total -= sizes[-1]
    return sizes


def test_items_that_wait_are_dealt_out_evenly():
    pace = Pace(items=10_000, seconds=0.01, size=10, waiting=1.0)
    assert dealt(pace, 1000, 5) == [200] * 5
    assert dealt(pace, 30, 5) == [10] * 3  # Ten of one envelope run at once anyway.
    # More than one second of them takes several envelopes, all of one size.
    assert dealt(pace, 10_000, 5) == [1000] * 10


@given(total=st.integers(1, 50_000), slots=st.integers(1, 64), seconds=st.floats(0.0005, 2))
def test_slots_of_items_that_wait_end_together(total, slots, seconds):
    pace = Pace(items=100_000, seconds=seconds, size=10, waiting=1.0)
    sizes = dealt(pace, total, slots)
    assert sum(sizes) == total
    assert max(sizes[:slots]) - min(sizes[: slots - 1] or sizes) <= max(WAITING.concurrency, slots)
    # None keeps its lane for much more than the second that it may.
    assert max(sizes) <= max(WAITING.concurrency, PATIENT * WAITING.concurrency * WAITING.seconds / seconds + 1)


def makespan(durations: list[float], slots: int, pace: Pace) -> float:
    """Seconds until the last of *durations* has run, sized as a sender would: a simulation, on an ideal machine."""
    sizing = Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20)
    free = [0.0] * slots
    running: list[tuple[float, int, float]] = []
    sent, now = 0, 0.0
    while sent < len(durations) or running:
        while sent < len(durations) and len(running) < 2 * slots + 2:
            part = durations[sent : sent + sizing.next_size(pace, len(durations) - sent, slots)]
            sent += len(part)
            end = max(heapq.heappop(free), now) + ENVELOPE_COST + sum(part)
            heapq.heappush(free, end)
            heapq.heappush(running, (end, len(part), sum(part)))
        now, items, busy = heapq.heappop(running)
        pace = pace.updated(Run(items, busy, busy), 100 * items)
    return now


ENVELOPE_COST = 0.0015


@given(
    seconds=st.floats(0.001, 0.05),
    count=st.integers(500, 3000),
    slots=st.sampled_from([2, 4]),
    is_warm=st.booleans(),
)
def test_workers_are_busy_to_the_end(seconds, count, slots, is_warm):
    ideal = count * seconds / slots
    wall = makespan([seconds] * count, slots, Pace(4096, seconds, 100, 0) if is_warm else Pace())
    assert wall <= ideal / 0.9 + 2 * FIRST_ITEMS * seconds


@given(seed=st.integers(0, 1000))
def test_unequal_durations_are_evened_out(seed):
    dice = random.Random(seed)
    durations = [dice.lognormvariate(math.log(0.002), 1.5) for _ in range(2000)]
    wall = makespan(durations, 2, Pace(4096, sum(durations) / 2000, 100, 0))
    assert wall <= sum(durations) / 2 / 0.9 + max(durations)


USUAL = SendingRules(Sizing(seconds=0.1, max_items=20_000, max_bytes=1 << 20))
START = SendingState(Pace(), Pace(), remaining=1000, ahead=None, in_flight=0, size=0, unfinished=0.0, unread=0)


def most_in_flight(rules: SendingRules, slots: int) -> int:
    return next(number for number in range(1000) if not rules.may_send(replace(START, in_flight=number), slots))


@given(slots=st.integers(1, 100))
def test_envelopes_in_flight_keep_the_slots_busy_unless_the_caller_has_a_number(slots):
    assert most_in_flight(USUAL, slots) == 2 * slots + 2
    assert most_in_flight(replace(USUAL, in_flight=3), slots) == 3
    assert most_in_flight(replace(USUAL, in_flight=50, is_plain=True), slots) == min(50, 2 * slots + 2)


def test_nothing_leaves_while_too_many_bytes_are_in_flight():
    assert not USUAL.may_send(replace(START, size=IN_FLIGHT_BYTES), 2)


@given(unread=st.integers(0, 100_000), size=st.floats(1, 1 << 20))
def test_a_stream_waits_for_its_reader_and_a_sequence_does_not(unread, size):
    stream = replace(START, remaining=None, sent=Pace(1, 0.001, size), unread=unread)
    assert USUAL.may_send(stream, 2) == (unread < UNREAD.taken_by(stream.sent))
    assert USUAL.may_send(replace(stream, remaining=1), 2)


@given(pace=paces, ahead=st.integers(1, 40_000), slots=st.integers(1, 64))
def test_an_envelope_of_a_stream_leaves_room_for_others(pace, ahead, slots):
    size = USUAL.next_size(replace(START, pace=pace, sent=pace, remaining=None, ahead=ahead), slots)
    assert 1 <= size <= max(1, ahead // 4)
    assert size == 1 or size * (2 * slots + 2) <= UNREAD.taken_by(pace)


@given(pace=paces, size=st.integers(1, 1000))
def test_a_batch_size_of_the_caller_is_kept(pace, size):
    assert replace(USUAL, batch_size=size).next_size(replace(START, pace=pace), 2) == size
