"""Whoever has lost a lease sends nothing more, whatever it knows of that."""

from __future__ import annotations

import pytest

from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.config.transport.fence import Fence, FencedOffError
from graft.config.transport.sending_channel import Outgoing
from graft.tasks.durable import feeder_lease
from graft.tasks.durable.feeder_lease import FeederLease
from graft.tasks.messages.message_format import lists
from tests.stack import wait_until

QUEUE = "fenced"
LEASE, LAST, FENCE = (f"graft:durable:test:{name}" for name in ("feeder", "token", "fence"))


@pytest.fixture
def channel(redis, monkeypatch):
    for name, key in (("LEASE", LEASE), ("LAST", LAST), ("FENCE", FENCE)):
        monkeypatch.setattr(feeder_lease, name, key)  # A worker of the session may feed under the real one.
    with app().connection_for_write() as connection:
        yield connection.channel()
    redis.delete(LEASE, LAST, FENCE, *lists(QUEUE))


def messages(channel, number):
    made = [channel.prepare_message("{}", priority=5, headers={}, properties={}) for _ in range(number)]
    for message in made:
        channel.seal(QUEUE, message)
    return [Outgoing(QUEUE, message) for message in made]


def waiting(redis):
    return sum(redis.llen(key) for key in lists(QUEUE))


def test_the_holder_of_the_lease_sends_any_number(redis, channel):
    lease = FeederLease.take("me", shared())
    assert lease is not None
    channel.push(messages(channel, 3000), lease.fence)
    assert waiting(redis) == 3000


def test_a_holder_that_was_replaced_is_refused_though_it_does_not_know(redis, channel):
    late = FeederLease.take("late", shared())
    assert FeederLease.take("other", shared()) is None
    assert late is not None
    redis.pexpire(LEASE, 1)
    wait_until(lambda: not redis.exists(LEASE), what="the lease to end")
    other = FeederLease.take("other", shared())
    assert other is not None
    assert int(other.token) > int(late.token)
    with pytest.raises(FencedOffError):
        channel.push(messages(channel, 3), late.fence)
    assert waiting(redis) == 0
    assert not late.renew(shared())
    late.release(shared())
    assert other.renew(shared())


def test_tokens_grow_though_the_clock_or_the_other_server_jumps_back(redis, channel):
    redis.set(FENCE, "9000000000000000")
    lease = FeederLease.take("me", shared())
    assert lease is not None
    assert int(lease.token) == 9000000000000001
    lease.release(shared())
    redis.delete(FENCE)
    later = FeederLease.take("me", shared())
    assert later is not None
    assert int(later.token) == 9000000000000002


def test_a_fence_without_a_token_lets_nobody_through(redis, channel):
    with pytest.raises(FencedOffError):
        channel.push(messages(channel, 1), Fence(FENCE, "1"))
