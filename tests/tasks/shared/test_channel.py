"""The shared channel: who is there on both sides, and when it ends."""

from __future__ import annotations

from uuid import uuid4

import pytest

from graft.tasks.errors import SignatureError
from graft.tasks.shared.channel import SharedChannel, SharedClosed
from graft.tasks.shared.primitive import DifferentLimitsError
from tests.stack import wait_until


@pytest.fixture
def channel(redis_stack):
    return SharedChannel(str(uuid4()), 2)


def test_values_come_out_in_the_order_of_sending_and_a_full_channel_takes_none(channel):
    assert [channel.send("s", channel.seal(number)) for number in range(3)] == [True, True, False]
    assert channel.room() == 0
    assert [channel.receive("r") for _ in range(3)] == [[0], [1], []]
    assert channel.room() == 2


def test_the_end_comes_after_the_last_value_once_every_sender_has_closed(channel):
    channel.send("a", channel.seal(1))
    channel.send("b", channel.seal(2))
    channel.close("sender", "a")
    assert channel.receive("r") == [1]
    channel.close("sender", "b")
    assert channel.receive("r") == [2]
    with pytest.raises(SharedClosed):
        channel.receive("r")


def test_a_receiver_that_came_first_waits_for_the_first_sender(channel):
    assert channel.receive("r") == []
    assert channel.renew("receiver", "r")
    assert channel.send("s", channel.seal("value"))
    assert channel.receive("r") == ["value"]


def test_a_sender_whose_last_receiver_has_gone_is_refused(channel):
    channel.send("s", channel.seal(1))
    channel.receive("r")
    channel.close("receiver", "r")
    with pytest.raises(SharedClosed):
        channel.send("s", channel.seal(2))


def test_a_sender_that_is_not_renewed_has_died(redis_stack):
    channel = SharedChannel(str(uuid4()), 2, lease=0.1)
    channel.send("s", channel.seal(1))
    assert channel.renew("sender", "s")
    assert channel.receive("r") == [1]

    def is_over():
        try:
            return channel.receive("r") != []
        except SharedClosed:
            return True

    wait_until(is_over)


def test_another_capacity_is_refused_until_everybody_has_left(channel, redis):
    other = SharedChannel(channel.name, 3)
    channel.send("s", channel.seal(1))
    with pytest.raises(DifferentLimitsError, match="capacity 2, and this process asks for capacity 3"):
        other.send("t", other.seal(2))
    channel.receive("r")
    channel.close("sender", "s")
    channel.close("receiver", "r")
    assert not redis.exists(*channel.keys)
    assert other.send("t", other.seal(2))


def test_a_value_of_another_channel_is_not_opened(channel):
    other = SharedChannel(str(uuid4()), 2)
    channel.send("s", other.seal("forged"))
    with pytest.raises(SignatureError):
        channel.receive("r")


def test_everything_in_redis_expires(channel, redis):
    channel.send("s", channel.seal(1))
    channel.receive("r")
    channel.send("s", channel.seal(1))
    assert all(redis.ttl(key) > 0 for key in channel.keys)
