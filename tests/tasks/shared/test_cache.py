from __future__ import annotations

from uuid import uuid4

import pytest

from graft.tasks.errors import SignatureError
from graft.tasks.shared.cache import SharedCache
from tests.stack import wait_until


@pytest.fixture
def cache(redis_stack):
    return SharedCache(str(uuid4()), 60, lease=0.3)


def test_one_ticket_computes_and_the_others_wait_for_it(cache):
    assert cache.ask("k", "a").what == "compute"
    assert cache.ask("k", "a").what == "compute"  # The reply was lost.
    found = cache.ask("k", "b")
    assert (found.what, found.owner) == ("wait", "a")
    cache.finish("k", "a", {"answer": 42})
    assert cache.ask("k", "b", "a").value == {"answer": 42}
    assert cache.get("k").value == {"answer": 42}


def test_an_error_is_told_to_those_who_waited_for_it_only(cache):
    cache.ask("k", "a")
    cache.ask("k", "b")
    cache.fail("k", "a", LookupError("down"))
    found = cache.ask("k", "b", "a")
    assert found.what == "error"
    assert str(found.value) == "down"
    assert cache.ask("k", "c").what == "compute"
    assert cache.get("k") is None


def test_a_computation_that_is_not_renewed_is_another_ones(cache):
    cache.ask("k", "dead")
    assert cache.renew("k", "dead")
    wait_until(lambda: cache.ask("k", "b").what == "compute")
    assert not cache.renew("k", "dead")
    cache.finish("k", "dead", "too late")
    assert cache.get("k") is None
    cache.finish("k", "b", "mine")
    assert cache.get("k").value == "mine"


def test_a_value_is_opened_under_its_own_key_only(cache, redis):
    cache.set("k", "value")
    assert 0 < redis.pttl(cache.entry("k")[0]) <= 60_000
    redis.copy(cache.entry("k")[0], cache.entry("other")[0])
    with pytest.raises(SignatureError):
        cache.get("other")


def test_keys_are_told_apart_by_value_and_type(cache):
    keys = ["1", 1, (1,), ("1",), ((1,), 2), b"1", None, True, 1.5, "é \ud800", "(1)"]
    assert len({cache.entry(key)[0] for key in keys}) == len(keys)
