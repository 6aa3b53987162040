"""What follows a durable batch is called at its end, once, whoever is killed; a chain needs nobody who waits."""

from __future__ import annotations

import os
import signal
import time

import pytest

import graft
from graft.tasks.durable import feeder_lease, record
from tests import samples
from tests.stack import wait_until

WAIT = 60.0
BOTH = {"success": samples.note_success, "complete": samples.note_end}


@pytest.fixture
def name(stack, redis, tmp_path):
    yield str(tmp_path / "batch")
    for one in record.every(redis):
        record.forget(one, redis)


def known(name):
    """The batch with this name, once somebody has submitted it."""
    wait_until(lambda: record.read_all([record.id_of(name)]), WAIT, f"{name} to be submitted")
    return graft.batch(name)


def lines(name, event):
    try:
        with open(f"{name}.{event}") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def test_success_and_completion_are_called_with_the_summary(name):
    batch = graft.submit(samples.square, range(50), name=name, then=BOTH)
    wait_until(lambda: lines(name, "success") and lines(name, "complete"), WAIT, "both to be called")
    assert batch.collect(WAIT) == [n * n for n in range(50)]
    assert graft.submit(samples.square, range(50), name=name, then=BOTH).id == batch.id
    time.sleep(1.5)  # Time for a second call, were there one.
    assert lines(name, "success") == lines(name, "complete") == ["True 50 0"]


def test_a_failed_item_is_a_completion_and_no_success_until_it_has_run_again(name, tmp_path):
    batch = graft.submit(samples.fail_until, [(str(tmp_path / "runs"), 2)], name=name, then=BOTH)
    wait_until(lambda: lines(name, "complete") == ["False 1 1"], WAIT, "the end to be told of")
    assert not lines(name, "success")
    assert batch.resume(failed=True) == 1
    wait_until(lambda: lines(name, "complete") == ["False 1 1", "True 1 0"], WAIT, "the second end")
    wait_until(lambda: lines(name, "success"), WAIT, "success")
    assert lines(name, "success") == ["True 1 0"]


def test_an_empty_batch_has_ended_in_success(name):
    graft.submit(samples.square, [], name=name, then=BOTH)
    wait_until(lambda: lines(name, "success") and lines(name, "complete"), WAIT, "both to be called")


def test_a_chain_of_batches_needs_no_process_that_waits(name):
    graft.submit(samples.square, range(20), name=name, then={"success": samples.begin_next_stage})
    assert known(f"{name}.next").collect(WAIT) == [n**4 for n in range(20)]


def test_a_feeder_that_is_killed_at_the_end_calls_nothing_twice_and_leaves_nothing_out(name, redis):
    batch = graft.submit(samples.pause, range(30), name=name, batch_size=1, then=BOTH)
    wait_until(lambda: batch.progress().done >= 26, WAIT, "the end to be near")
    os.kill(int(feeder_lease.holder(redis).rpartition("/")[2]), signal.SIGKILL)
    wait_until(lambda: lines(name, "success") and lines(name, "complete"), WAIT, "both to be called")
    assert batch.collect(WAIT) == list(range(30))
    time.sleep(1.5)
    assert lines(name, "success") == lines(name, "complete") == ["True 30 0"]


def test_what_follows_and_fails_is_a_batch_with_its_error(name, redis):
    batch = graft.submit(samples.square, [1], name=name, then={"complete": samples.raise_value_error})
    follows = known(f"{batch.id}.0 complete")
    follows.wait(WAIT)
    assert [type(one.error) for one in follows.errors()] == [ValueError]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"then": BOTH}, ValueError, "durable=True"),
        ({"durable": True, "then": {"failure": samples.note_end}}, ValueError, "'complete'"),
        ({"durable": True, "then": {"success": 7}}, TypeError, "callable"),
        ({"durable": True, "then": {"success": samples.add}}, TypeError, "add"),
        ({"resume": "failed"}, ValueError, "durable=True"),
        ({"durable": True, "resume": "failed"}, ValueError, "name="),
        ({"name": "x", "resume": "all"}, ValueError, "'force'"),
        ({"name": "x", "resume": "failed", "if_exists": "restart"}, ValueError, "restart"),
    ],
)
def test_what_cannot_follow_is_refused(stack, options, kind, said):
    with pytest.raises(kind) as caught:
        graft.submit(samples.square, [1], **options)
    assert said in str(caught.value)
