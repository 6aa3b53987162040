"""Why items of a durable batch have failed, by cause, from what Redis keeps."""

from __future__ import annotations

import pytest

import graft
from graft.tasks.durable import record
from graft.tasks.durable.failures import failures
from graft.tasks.ids import new_id
from tests import samples

WAIT = 60.0


@pytest.fixture
def batch(stack, redis):
    """Of a hundred items the odd ones have failed, three of them in another way."""
    made = graft.submit(samples.raise_value_error_if_odd, [*range(96), "a", "b", None, 1], name=new_id(), batch_size=7)
    made.wait(WAIT)
    yield made
    made.forget()


def test_failed_items_are_grouped_by_cause_the_most_frequent_first(batch, redis):
    found = failures(record.read(batch.id), redis)
    assert (found.read, found.total, sum(cause.count for cause in found.causes)) == (52, 52, 52)
    first, *others = found.causes
    assert (first.error, first.count, first.items) == ("ValueError: 1 is odd", 49, tuple(range(1, 21, 2)))
    assert "raise_value_error_if_odd" in first.traceback
    assert {cause.error.partition(":")[0] for cause in others} == {"TypeError"}
    assert sorted(item for cause in others for item in cause.items) == [96, 97, 98]


def test_of_very_many_the_first_are_read_and_counted(batch, redis):
    found = failures(record.read(batch.id), redis, most_bytes=1)
    assert 0 < found.read < found.total == 52


def test_what_runs_again_has_not_failed(batch, redis):
    batch.pause()
    assert batch.resume(failed=True) == 52
    assert failures(record.read(batch.id), redis).total == 0
