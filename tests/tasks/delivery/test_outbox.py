"""The script that settles a run's message and sends what follows from it."""

from __future__ import annotations

import json

import pytest

from graft.config import keys
from graft.config.deployment import app
from graft.config.redis_client import shared
from graft.config.transport.sending_channel import Ready, push_arguments
from graft.tasks.delivery.outbox import CONCLUDE
from graft.tasks.messages.message_format import lists

QUEUE = "concluded"
TAG = "a-delivery"


@pytest.fixture
def conclude(redis):
    redis.hset(keys.UNACKED, TAG, json.dumps("a record"))
    redis.zadd(keys.UNACKED_INDEX, {TAG: 1.0})
    with app().connection_for_write() as connection:
        channel = connection.channel()
        messages = [channel.prepare_message("{}", headers={"number": number}, properties={}) for number in range(3)]
        for message in messages:
            channel.seal(QUEUE, message)
        ready: list[Ready] = [channel.ready(QUEUE, message) for message in messages]
        names = channel.record_keys(TAG)
    found, arguments = push_arguments(ready)
    yield lambda: CONCLUDE([*names, *found], [TAG, *arguments], shared())
    redis.delete(keys.RETURNED + TAG, f"{QUEUE}\x06\x16sign", *lists(QUEUE))
    redis.hdel(keys.UNACKED, TAG)


def waiting(redis):
    return [json.loads(raw)["headers"]["number"] for key in lists(QUEUE) for raw in redis.lrange(key, 0, -1)][::-1]


def test_what_follows_leaves_with_the_acknowledgement_and_once(redis, conclude):
    assert conclude() == 1
    assert (waiting(redis), redis.llen(f"{QUEUE}\x06\x16sign")) == ([0, 1, 2], 3)
    assert not redis.hexists(keys.UNACKED, TAG)
    assert redis.zscore(keys.UNACKED_INDEX, TAG) is None
    assert conclude() == 0  # Its reply was lost, or another run has concluded.
    assert waiting(redis) == [0, 1, 2]


def test_a_run_whose_message_went_back_sends_nothing(redis, conclude):
    redis.set(keys.RETURNED + TAG, 1)
    assert conclude() == -1
    assert waiting(redis) == []
