"""Batches whose messages wait in one list share it, in proportion, from the moment in which each begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.exceptions import NoScriptError

from graft.config.transport.fair_order import DIGEST, FairOrder, Flow, FlowMessage

Send = Callable[..., None]


class Waiting:
    """A list in Redis with what several batches have put on it, which workers take from the right."""

    _numbers = count()

    def __init__(self, client: Any) -> None:
        self.client = client
        self.key = f"waiting:{next(self._numbers)}"
        self.order = FairOrder(self._run, f"{self.key}:times")
        self.batches: dict[str, Flow] = {}

    def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [self.client.execute_command(*command) for command in commands]

    def send(self, names: str, seconds: float = 1.0, share: float = 1.0) -> None:
        """A message of each batch in *names*, in one go."""
        for name in names:
            self.batches.setdefault(name, Flow(share))
        its = [FlowMessage(self.batches[name], seconds, json.dumps({"of": name})) for name in names]
        self.order.push({self.key: its})

    def plain(self, name: str) -> None:
        self.client.lpush(self.key, json.dumps({"of": name}))

    def take(self, most: int) -> str:
        """The batches of the next messages, the first one first."""
        return "".join(json.loads(text)["of"] for text in self.client.rpop(self.key, most) or [])


@pytest.fixture
def waiting(redis):
    return Waiting(redis)


def test_a_newcomer_begins_at_once_and_takes_turns_with_what_waits(waiting):
    waiting.send("A" * 20)
    assert waiting.take(5) == "AAAAA"
    waiting.send("BBBB")
    assert waiting.take(9) == "ABABABABA"
    assert waiting.take(50) == "A" * 10


def test_each_batch_gets_its_share_of_the_time_and_not_of_the_messages(waiting):
    waiting.send("L" * 10, seconds=10.0)
    waiting.send("s" * 30, seconds=1.0)
    taken = waiting.take(33)
    assert taken.count("L") == 3
    assert taken.startswith("L" + "s" * 10)


def test_a_batch_with_a_larger_share_gets_as_much_more(waiting):
    waiting.send("A" * 40)
    waiting.send("T" * 30, share=3.0)
    assert waiting.take(40).count("T") == 30


def test_a_third_one_shares_with_both(waiting):
    waiting.send("A" * 30)
    waiting.send("B" * 30)
    assert waiting.take(20).count("A") == 10
    waiting.send("C" * 10)
    taken = waiting.take(30)
    assert {name: taken.count(name) for name in "ABC"} == {"A": 10, "B": 10, "C": 10}


def test_time_that_a_batch_was_alone_is_not_held_against_it(waiting):
    for _ in range(50):
        waiting.send("A")
        assert waiting.take(1) == "A"
    waiting.send("BBBBBB")
    waiting.send("AAA")
    assert waiting.take(6).count("A") >= 2


def test_a_batch_that_has_slept_is_not_owed_what_others_had_meanwhile(waiting):
    waiting.send("A")
    for _ in range(20):
        waiting.send("BBBBB")
        waiting.take(5)
    waiting.send("BBBBB")
    waiting.send("AAAAA")
    assert waiting.take(8).count("B") >= 3


def test_what_took_longer_than_expected_is_charged_afterwards(waiting):
    waiting.send("A" * 2 + "B" * 8)
    assert waiting.take(3) == "ABA"
    waiting.batches["A"].use(6.0)
    waiting.send("AAAA")
    assert waiting.take(8).startswith("BBBBBBB")


def test_plain_messages_stay_where_they_are_among_those_of_batches(waiting):
    waiting.send("AAAA")
    waiting.plain("p")
    waiting.send("AA")
    waiting.send("BB")
    taken = waiting.take(20)
    assert sorted(taken) == sorted("AAAAAApBB")
    assert taken.index("p") in (4, 5, 6)  # Behind the four that came before it, and at most both newcomers.
    assert taken.startswith("ABAB")


def test_without_others_plain_messages_are_not_overtaken(waiting):
    for _ in range(5):
        waiting.plain("p")
    waiting.send("BB")
    assert waiting.take(9) == "pppppBB"


def test_a_message_that_has_come_back_makes_no_newcomer_go_before_all_others(waiting, redis):
    waiting.send("A")
    old = redis.rpop(waiting.key)
    for _ in range(30):
        waiting.send("AAA")
        waiting.take(3)
    waiting.send("AAAA")
    redis.rpush(waiting.key, old)
    waiting.send("BBBB")
    assert waiting.take(1) == "A"
    assert waiting.take(8) in ("ABABABAB", "BABABABA")


def test_a_server_that_has_forgotten_the_script_is_sent_it_again(waiting, redis):
    waiting.send("A")
    redis.script_flush()
    with pytest.raises(NoScriptError):
        redis.evalsha(DIGEST, 0)
    waiting.send("AA")
    assert waiting.take(9) == "AAA"


def test_a_server_that_has_lost_everything_goes_on_from_what_it_is_told(waiting, redis):
    waiting.send("A" * 10)
    redis.delete(waiting.key, f"{waiting.key}:times")
    waiting.send("A" * 10)
    waiting.send("BBB")
    assert waiting.take(6) == "ABABAB"


def test_what_was_misjudged_is_spread_anew_and_keeps_its_turn(waiting, redis):
    waiting.send("A" * 10, seconds=0.1)
    waiting.plain("p")
    waiting.send("BBBB")
    assert waiting.order.reorder(waiting.key, '"of": "A"', waiting.batches["A"], 10.0, redis) == 10
    assert waiting.batches["A"].served == pytest.approx(10.0)
    taken = waiting.take(20)
    assert taken.replace("p", "").startswith("ABABABAB")
    assert sorted(taken) == sorted("A" * 10 + "BBBBp")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    names=st.text("AABBCp", max_size=40), factor=st.floats(0.01, 100), seconds=st.lists(st.floats(0, 10), min_size=3)
)
def test_to_spread_anew_loses_nothing(redis, names, factor, seconds):
    waiting = Waiting(redis)
    for number, name in enumerate(names):
        waiting.plain(name) if name == "p" else waiting.send(name, seconds=seconds[number % len(seconds)])
    flow = waiting.batches.get("A", Flow())
    count = waiting.order.reorder(waiting.key, '"of": "A"', flow, factor, redis)
    assert count == names.count("A")
    assert sorted(waiting.take(100)) == sorted(names)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(script=st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from([0.1, 1.0, 5.0]), st.integers(0, 3))))
def test_whatever_is_sent_is_taken_once_and_in_the_order_of_its_batch(redis, script):
    waiting, numbers, taken = Waiting(redis), count(), []
    for name, seconds, most in script:
        flow = waiting.batches.setdefault(name, Flow())
        waiting.order.push({waiting.key: [FlowMessage(flow, seconds, json.dumps({"of": (name, next(numbers))}))]})
        taken += redis.rpop(waiting.key, most) or [] if most else []
    taken += redis.rpop(waiting.key, 1000) or []
    order = [tuple(json.loads(text)["of"]) for text in taken]
    assert sorted(number for _, number in order) == list(range(len(script)))
    for name in "ABCD":
        its = [number for of, number in order if of == name]
        assert its == sorted(its)
