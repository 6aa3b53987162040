"""What ``@limit`` accepts, and which keys a call has; nothing here needs Redis."""

from __future__ import annotations

import functools

import pytest
from celery import Celery

from graft import BreakerRules, limit, submit
from graft.tasks.shared.limit_events import LimitEvent
from graft.tasks.shared.rate_window import Rate
from graft.tasks.shared.turns import turns_of
from tests import samples


def names(func, *args, **kwargs):
    return [turn.primitive.prefix.removeprefix("graft:shared:") for turn in turns_of(func).turns(args, kwargs, "id")]


@limit(semaphore=2, rate="10/minute", breaker=5, by="tenant", name="bank")
def pay(amount, tenant="nobody"):
    return amount, tenant


def test_the_function_stays_what_it_is_and_has_its_limits():
    assert pay(3) == (3, "nobody")
    assert turns_of(samples.square) is None
    found = turns_of(pay).turns((3,), {"tenant": "acme"}, "id")
    assert [type(turn.primitive).__name__ for turn in found] == ["SharedBreaker", "SharedSemaphore", "SharedRate"]
    assert {turn.key for turn in found} == {"acme"}
    assert str(found[0].limit) == "2 at once, 10/minute, breaker after 5 failures by tenant"


def test_each_value_of_the_key_has_limits_of_its_own():
    assert names(pay, 3) == [f"{kind}:bank[nobody]:" for kind in ("circuit-breaker", "semaphore", "rate")]
    assert names(pay, 3, "acme") == names(pay, 4, tenant="acme") == names(functools.partial(pay, tenant="acme"), 5)
    assert names(functools.partial(pay, 3), "acme") == names(pay, 3, "acme")
    long = names(pay, 3, "x" * 5000)[0]
    assert len(long) < 200
    assert long != names(pay, 3, "x" * 5001)[0]


def test_a_key_may_be_computed_and_limits_may_be_several():
    @limit(semaphore=1, name="all")
    @limit(rate=5, by=lambda job: job["tenant"], name="each")
    def run(job):
        return job

    assert names(run, {"tenant": 7}) == ["semaphore:all:", "rate:each[7]:"]


def test_methods_and_objects_that_are_called_have_their_limits():
    class Shop:
        @limit(semaphore=1, by="what", name="shop")
        def buy(self, what):
            return what

        @limit(semaphore=1, name="call")
        def __call__(self, what):
            return what

    assert names(Shop().buy, "tea") == ["semaphore:shop[tea]:"]
    assert names(Shop(), "tea") == ["semaphore:call:"]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/minute", Rate(10, 60)), ("100/hour", Rate(100, 3600)), ("1/day", Rate(1, 86400)), (5, Rate(5, 1)),
        ("5 / second", Rate(5, 1)), ("10/m", Rate(10, 60)), ("3/minutes", Rate(3, 60)), ("2/s", Rate(2, 1)),
    ],
)  # fmt: skip
def test_a_rate_is_a_number_in_a_time(text, rate):
    assert Rate.of(text) == rate
    assert Rate.of(str(rate)) == rate


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"at least one of semaphore=, rate= and breaker="),
        ({"rate": "10/fortnight"}, ValueError, r"rate='10/fortnight' is no rate; write \"10/minute\""),
        ({"rate": "many"}, ValueError, r"rate='many' is no rate"),
        ({"rate": "10"}, ValueError, r"rate='10' is no rate"),
        ({"rate": "0/minute"}, ValueError, r"rate='0/minute' must allow at least 1"),
        ({"rate": "-3/hour"}, ValueError, r"rate='-3/hour' must allow at least 1"),
        ({"rate": 0}, ValueError, r"rate=0 must allow at least 1"),
        ({"rate": "0.5/second"}, ValueError, r"0\.5 is no whole number; name a longer time"),
        ({"rate": "20000/day"}, ValueError, r"more than 10000 in a window"),
        ({"rate": 0.5}, TypeError, r"rate=0\.5 must be a text such as"),
        ({"rate": True}, TypeError, r"rate=True"),
        ({"semaphore": 0}, ValueError, r"semaphore=0 must be at least 1"),
        ({"semaphore": "5"}, TypeError, r"semaphore='5' must be a whole number"),
        ({"breaker": 0}, ValueError, r"breaker=0 must be at least 1"),
        ({"breaker": True}, TypeError, r"breaker=True must be a whole number of failures"),
        ({"semaphore": 1, "by": "tenent"}, ValueError, r"by='tenent' names no parameter of f; .* are tenant"),
        ({"semaphore": 1, "by": "rest"}, ValueError, r"by='rest' names no parameter"),
        ({"semaphore": 1, "by": 3}, TypeError, r"by=3 must be a parameter's name or a function"),
        ({"semaphore": 1, "name": ""}, ValueError, r"name='' must be a text"),
        ({"semaphore": 1, "on_event": "x"}, TypeError, r"on_event='x' is not callable"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_where_it_is_written(options, error, message):
    def f(tenant, **rest):
        return tenant

    with pytest.raises(error, match=message):
        limit(**{"name": "bad", **options})(f)


def test_what_has_no_name_of_its_own_needs_one():
    with pytest.raises(ValueError, match=r"<lambda> has no name that workers could share; give the limit a name="):
        limit(semaphore=1)(lambda x: x)
    assert names(limit(semaphore=1, name="mine")(lambda x: x), 1) == ["semaphore:mine:"]


def test_a_task_is_told_where_its_limit_belongs():
    app = Celery("app", set_as_current=False)
    with pytest.raises(TypeError, match=r"write @limit below @app\.task"):
        limit(semaphore=1)(app.task(name="t")(samples.identity))
    with pytest.raises(TypeError, match="right above its def"):
        limit(semaphore=1)(len)


def test_two_functions_with_one_name_must_agree():
    def f():
        pass

    def g():
        pass

    limit(rate="10/minute", name="shared")(f)
    limit(rate="10/minute", name="shared", semaphore=3)(g)
    with pytest.raises(ValueError, match=r"'shared' of .*g has rate=20/minute, and that of .*f has 10/minute"):
        limit(rate="20/minute", name="shared")(g)
    with pytest.raises(ValueError, match=r"two limits semaphore= named 'shared'"):
        limit(semaphore=3, name="shared")(g)


def test_who_defines_a_function_anew_may_change_its_limit():
    for rate in ("10/minute", "20/minute"):

        @limit(rate=rate, name="anew")
        def f():
            pass


def test_a_reducer_may_have_none():
    with pytest.raises(ValueError, match=r"reduce= is called once, and may have no limits"):
        submit(samples.square, [1], reduce=limited_total)


@limit(semaphore=1)
def limited_total(values):
    return sum(values)


def test_rules_of_a_breaker_may_be_given_whole():
    rules = BreakerRules(2, 1, 5.0, 1)
    assert limit(breaker=rules, name="rules")(lambda: 1).__graft_limits__[0].breaker == rules


def test_events_read_as_sentences():
    assert str(LimitEvent("bank", "rate", "postponed", "acme", 3, 6.0)) == (
        "3 items wait for the rate 'bank' of 'acme', and ask again in 6 s"
    )
    opened = LimitEvent("bank", "breaker", "opened", wait=30.0, error=ConnectionError("down"))
    assert "the breaker 'bank' has opened after ConnectionError('down')" in str(opened)
