from __future__ import annotations

import json
import time

import pytest

from graft.config import keys, redis_clock
from graft.config.deployment import settings
from graft.tasks.cleanup.redis_keys import prune_dead_letters
from graft.tasks.dead_letters import store as dead_letters
from graft.tasks.messages.message_format import SENT_AT, SEPARATOR, lists
from graft.tasks.queues.aging import lift_waiting_messages

pytestmark = pytest.mark.acl_role("worker")


def message(name: str, age: float | None) -> str:
    headers = {"id": name} if age is None else {"id": name, SENT_AT: time.time() - age}
    return json.dumps({"headers": headers, "body": ""})


@pytest.fixture
def unread(redis):
    """A queue that no worker reads, empty before and after."""
    name = "unread"
    redis.zadd(keys.QUEUES, {name: redis_clock.now()})
    redis.delete(*lists(name))
    yield name
    redis.delete(*lists(name))
    redis.zrem(keys.QUEUES, name)


def test_what_has_waited_too_long_goes_to_the_front_oldest_first(redis, unread):
    lowest, middle = f"{unread}{SEPARATOR}9", f"{unread}{SEPARATOR}5"
    too_long = settings().max_waiting + 5
    for name, age in (("a", too_long + 2), ("b", too_long + 1), ("young", 1.0)):
        redis.lpush(lowest, message(name, age))
    redis.lpush(middle, message("c", too_long))
    assert lift_waiting_messages() == 3
    front = [json.loads(redis.rpop(unread))["headers"]["id"] for _ in range(3)]
    assert set(front) == {"a", "b", "c"}
    assert front.index("a") < front.index("b")
    assert redis.llen(lowest) == 1
    assert redis.llen(middle) == 0


def test_what_has_waited_too_long_is_found_behind_a_younger_one_of_another_batch(redis, unread):
    """As fair ordering puts it: a newcomer starts where the workers are, not behind all that waits."""
    lowest, too_long = f"{unread}{SEPARATOR}9", settings().max_waiting + 5
    for name, age in (("newcomer", 1.0), ("old", too_long), ("young", 1.0), ("older", too_long + 1)):
        redis.lpush(lowest, message(name, age))
    assert lift_waiting_messages() == 2
    assert [json.loads(redis.rpop(unread))["headers"]["id"] for _ in range(2)] == ["older", "old"]
    assert [json.loads(raw)["headers"]["id"] for raw in redis.lrange(lowest, 0, -1)] == ["young", "newcomer"]


def test_queues_without_messages_cost_no_look_each(redis, unread):
    def looks() -> int:
        return redis.info("commandstats")["cmdstat_evalsha"]["calls"]

    names = [f"empty-{number}" for number in range(1000)]
    redis.zadd(keys.QUEUES, dict.fromkeys(names, redis_clock.now()))
    try:
        before = looks()
        lift_waiting_messages()
        assert looks() - before < len(names)  # Nine each would be 9,000; workers take messages meanwhile.
    finally:
        redis.zrem(keys.QUEUES, *names)


def test_messages_of_others_keep_their_place(redis, unread):
    redis.lpush(f"{unread}{SEPARATOR}9", message("stranger", None), "no json at all")
    assert lift_waiting_messages() == 0
    assert redis.llen(f"{unread}{SEPARATOR}9") == 2


def letter(name: str) -> dead_letters.DeadLetter:
    return dead_letters.DeadLetter.make(
        id=name,
        task="graft.batch",
        queue="batch",
        reason="poisoned",
        function="m:f",
        error=ValueError("no"),
        traceback="",
        runs=3,
        items=1,
        envelope="sealed",
    )


@pytest.fixture
def letters(redis):
    redis.delete(dead_letters.LETTERS, dead_letters.INDEX)
    yield redis
    redis.delete(dead_letters.LETTERS, dead_letters.INDEX)


def test_a_letter_is_read_as_it_was_buried(letters):
    one = letter("one")
    dead_letters.bury(one)
    assert dead_letters.newest() == [one]


def test_a_letter_buried_twice_is_one_letter(letters):
    dead_letters.bury(letter("one"))
    dead_letters.bury(letter("one"))
    assert dead_letters.count() == 1


def test_letters_of_one_cause_have_one_fingerprint():
    assert letter("one").fingerprint == letter("two").fingerprint


def test_old_letters_are_pruned_and_young_ones_kept(letters):
    for name in ("old", "young"):
        dead_letters.bury(letter(name))
    letters.zadd(dead_letters.INDEX, {"old": time.time() - settings().dead_letter_ttl - 1})
    assert prune_dead_letters() == 1
    assert [kept.id for kept in dead_letters.newest()] == ["young"]
