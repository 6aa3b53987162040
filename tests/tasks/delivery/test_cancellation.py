"""The list of cancelled batches and tasks, and the filter of it that a worker's processes share."""

from __future__ import annotations

import os

import pytest

from graft.config.deployment import current
from graft.tasks.delivery import cancellation
from graft.tasks.delivery.cancellation import SharedFilter
from graft.tasks.ids import new_id

pytestmark = pytest.mark.acl_role("worker")


@pytest.fixture
def shared_filter():
    yield cancellation.keep_filter()
    current.drop(SharedFilter)


def test_the_filter_learns_what_is_new_and_saves_the_question(redis, shared_filter):
    before, after, other = new_id(), new_id(), new_id()
    cancellation.cancel(before, 60)
    shared_filter.update(redis)
    assert cancellation.is_cancelled(before)
    cancellation.cancel(after, 60)
    assert not cancellation.may_be_cancelled(after)
    shared_filter.update(redis)
    assert cancellation.is_cancelled(after)
    assert not cancellation.is_cancelled(other)


def test_the_filter_starts_over_with_a_list_that_does(redis, shared_filter):
    for _ in range(3):
        cancellation.cancel(new_id(), 60)
    shared_filter.update(redis)
    redis.delete(cancellation.LIST)
    name = new_id()
    cancellation.cancel(name, 60)
    shared_filter.update(redis)
    assert cancellation.is_cancelled(name)


def test_a_process_forked_earlier_sees_what_its_parent_adds(shared_filter):
    name = new_id()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0 if name in shared_filter else 1)
    shared_filter.add(name)
    os.write(writer, b"x")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_without_a_filter_redis_is_asked(redis):
    name = new_id()
    assert not cancellation.is_cancelled(name)
    cancellation.cancel(name, 60)
    assert cancellation.is_cancelled(name)


def test_the_list_is_bounded(redis, monkeypatch):
    monkeypatch.setattr(cancellation, "MOST", 5)
    names = [new_id() for _ in range(8)]
    for name in names:
        cancellation.cancel(name, 60)
    assert redis.zcard(cancellation.LIST) == 5
    assert set(redis.zrange(cancellation.LIST, 0, -1)) == {name.encode() for name in names[3:]}


def test_a_flag_that_is_raised_for_less_cuts_no_other_short(redis):
    redis.delete(cancellation.LIST)
    name = new_id()
    cancellation.cancel(name, 1000)
    for flag in (name, new_id()):
        cancellation.cancel(flag, 10)
        assert redis.ttl(cancellation.CANCEL_KEY + name) > 900
        assert redis.ttl(cancellation.LIST) > 900
