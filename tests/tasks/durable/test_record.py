"""Positions as runs; and whatever comes twice, late or in pieces is counted once and read in order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.tasks.durable import outcomes, record
from graft.tasks.durable.outcomes import AsArrived, InOrder
from graft.tasks.durable.positions import as_runs, as_text, clear_runs, positions_in, runs_in, without
from graft.tasks.durable.record import BatchKeys
from graft.tasks.envelope import Envelope, Report, WireFunction, error_frame, value_frame
from graft.tasks.ids import new_id

OPEN = "test:open"  # Workers of the session feed what is on the real list.
POSITIONS = st.sets(st.integers(0, 120))


@given(positions=POSITIONS)
def test_runs_are_what_they_were_made_of(positions):
    runs = as_runs(sorted(positions))
    assert list(positions_in(runs)) == sorted(positions)
    assert runs_in(as_text(runs)) == runs
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(runs))


@given(positions=POSITIONS, others=POSITIONS)
def test_runs_without_others_are_a_difference(positions, others):
    left = without(as_runs(sorted(positions)), as_runs(sorted(others)))
    assert list(positions_in(left)) == sorted(positions - others)


@given(positions=POSITIONS, total=st.integers(0, 130))
def test_runs_of_clear_bits_are_those_of_redis(positions, total):
    bits = bytearray(17)
    for position in positions:
        bits[position // 8] |= 1 << (7 - position % 8)
    expected = [position for position in range(total) if position not in positions]
    assert list(positions_in(clear_runs(bytes(bits).rstrip(b"\0"), total))) == expected


@pytest.fixture(scope="module", autouse=True)
def _unfed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "OPEN", OPEN)
        patch.setattr(outcomes, "OPEN", OPEN)
        yield


def made(redis, total: int) -> BatchKeys:
    batch = BatchKeys(new_id())
    redis.hset(batch.record, mapping={"total": total, "generation": 0, "created": 1})
    return batch


def keep(redis, batch, positions, *, failed=(), generation=0, text="first"):
    frames = [
        error_frame(ValueError(text)) if position in failed else value_frame((position, text), position, 1000)
        for position in positions
    ]
    envelope = Envelope(
        new_id(), batch.id, WireFunction("import", "a:b", b"", False), positions, [], False, generation=generation
    )
    outcomes.keep(redis, envelope, Report(positions, frames, True, 0.0, 0.0, 0))


def read(redis, batch):
    cursor, found = InOrder(batch, redis), []
    while taken := cursor.take(int(redis.hget(batch.record, "generation"))):
        found += taken
    return found


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30), total=st.integers(1, 300))
def test_outcomes_that_overlap_are_counted_once_and_read_in_order(redis, seed, total):
    draw, batch = random.Random(seed), made(redis, total)
    seen: set[int] = set()
    while len(seen) < total:
        first = draw.randrange(total)
        positions = list(range(first, min(total, first + draw.randint(1, 80))))
        if draw.random() < 0.3:
            positions = sorted(draw.sample(positions, max(1, len(positions) // 2)))
        failed = draw.sample(positions, len(positions) // 5)
        keep(redis, batch, positions, failed=failed)
        seen |= set(positions)
        found = record.read(batch.id, redis)
        assert found.done == len(seen)
        assert bool(found.ended) == (len(seen) == total)
    assert [outcome.index for outcome in read(redis, batch)] == list(range(total))
    wrong = [outcome.index for outcome in read(redis, batch) if outcome.error]
    assert wrong == outcomes.failed_positions(batch, redis)
    assert len(wrong) == record.read(batch.id, redis).failed
    arrived = AsArrived(batch, redis)
    assert sorted(outcome.index for outcome in iter_all(arrived)) == list(range(total))
    again = record.read(batch.id, redis)
    assert record.rerun(again, redis) == len(wrong)
    while wrong:
        some = sorted(draw.sample(wrong, draw.randint(1, len(wrong))))
        keep(redis, batch, some, generation=1, text="second")
        keep(redis, batch, list(range(total)), failed=list(range(total)), text="late")  # Of the generation before.
        wrong = [position for position in wrong if position not in some]
    found = read(redis, batch)
    assert [outcome.index for outcome in found] == list(range(total))
    assert all(outcome.error is None and outcome.value[0] == outcome.index for outcome in found)
    assert record.read(batch.id, redis).state == "succeeded"
    record.forget(record.read(batch.id, redis), redis)
    assert not [key for key in batch.every if redis.exists(key)]


def iter_all(cursor):
    while taken := cursor.take(0):
        yield from taken


def test_outcomes_of_a_batch_that_is_gone_leave_nothing_behind(redis):
    batch = BatchKeys(new_id())
    keep(redis, batch, range(10))
    assert not [key for key in batch.every if redis.exists(key)]


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x1b[31m"])
def test_a_name_is_short_and_obeyed_by_no_terminal(name):
    with pytest.raises(ValueError, match="printable"):
        record.checked_name(name)
