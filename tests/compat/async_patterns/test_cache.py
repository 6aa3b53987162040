"""D.9: the cache, with one computation per key, in one process and in several."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from contextlib import suppress
from uuid import uuid4

import pytest

from graft.compat.async_patterns import AsyncCache, Stream
from graft.tasks.errors import UnpicklableError
from graft.tasks.shared.cache import SharedCache
from tests.compat.async_patterns.programs import program
from tests.stack import wait_until


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.redis)])
def name(request):
    if request.param == "local":
        return None
    request.getfixturevalue("redis_stack")
    return f"test {uuid4()}"


class Factory:
    def __init__(self, value, gate=None):
        self.calls = 0
        self.value = value
        self.gate = gate
        self.called = asyncio.Event()

    async def __call__(self):
        self.calls += 1
        self.called.set()
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_the_second_call_does_not_call_its_factory(name):
    async def main():
        cache = AsyncCache(60, name=name)
        other = Factory("Bob")
        assert await cache.get(("user", 1)) is None
        assert await cache.get_or_insert(("user", 1), Factory("Alice")) == "Alice"
        assert await cache.get_or_insert(("user", 1), other) == "Alice"
        assert other.calls == 0
        assert await cache.get(("user", 1)) == "Alice"
        await cache.set(("user", 1), "Carol")
        assert await cache.get(("user", 1)) == "Carol"
        assert await cache.get(("user", "1"), "nobody") == "nobody"

    run(main())


def test_a_stored_none_is_a_hit_and_a_factory_may_be_plain(name):
    async def main():
        cache = AsyncCache(60, name=name)
        assert await cache.get_or_insert("k", lambda: None) is None
        again = Factory("no")
        assert await cache.get_or_insert("k", again) is None
        assert again.calls == 0
        assert await cache.get("k", "default") is None

    run(main())


def test_what_has_reached_its_age_is_gone_and_a_set_starts_it_anew(name):
    async def main():
        cache = AsyncCache(0.3, name=name)
        await cache.set("k", 1)
        async for _ in Stream.interval(0.02):
            if await cache.get("k") is None:
                break
        assert await cache.get_or_insert("k", Factory(2)) == 2

    run(main())


def test_many_who_miss_share_one_computation(name):
    async def main():
        cache = AsyncCache(60, name=name)
        gate = asyncio.Event()
        factory = Factory("value", gate)
        callers = [asyncio.ensure_future(cache.get_or_insert("k", factory)) for _ in range(20)]
        await factory.called.wait()
        gate.set()
        assert await asyncio.gather(*callers) == ["value"] * 20
        assert factory.calls == 1

    run(main())


def test_an_error_reaches_all_who_wait_and_is_not_stored(name, monkeypatch):
    asked = set()
    ask = SharedCache.ask

    def noted(self, key, ticket, waited_for=""):
        found = ask(self, key, ticket, waited_for)
        asked.add(ticket)
        return found

    monkeypatch.setattr(SharedCache, "ask", noted)

    async def main():
        cache = AsyncCache(60, name=name)
        gate = asyncio.Event()
        factory = Factory(LookupError("down"), gate)
        first = asyncio.ensure_future(cache.get_or_insert("k", factory))
        await factory.called.wait()
        waiters = [asyncio.ensure_future(cache.get_or_insert("k", factory)) for _ in range(3)]
        await asyncio.sleep(0)  # One that asked later would compute by itself.
        if name is not None:
            await asyncio.to_thread(wait_until, lambda: len(asked) == 4)
        gate.set()
        outcomes = await asyncio.gather(first, *waiters, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["down"] * 4
        assert {type(outcome) for outcome in outcomes} == {LookupError}
        assert factory.calls == 1
        assert await cache.get_or_insert("k", Factory("up")) == "up"

    run(main())


def test_when_the_computing_caller_is_cancelled_another_takes_over(name):
    async def main():
        cache = AsyncCache(60, name=name)
        hanging = Factory("never", asyncio.Event())
        first = asyncio.ensure_future(cache.get_or_insert("k", hanging))
        await hanging.called.wait()
        second = asyncio.ensure_future(cache.get_or_insert("k", Factory("second")))
        await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert await second == "second"

    run(main())


def test_it_serves_one_loop_after_the_other(name):
    cache = AsyncCache(60, name=name)
    for _ in range(2):
        assert run(cache.get_or_insert("k", Factory("value"))) == "value"


def test_expired_values_leave_the_memory_by_themselves():
    cache = AsyncCache(0.05)
    run(cache.set("k", "value"))
    wait_until(lambda: len(cache) == 0)
    forgotten = AsyncCache(60)
    run(forgotten.set("k", "value"))
    weak = weakref.ref(forgotten)
    del forgotten
    wait_until(lambda: gc.collect() >= 0 and weak() is None)


COMPUTING = """
import asyncio
from graft.compat.async_patterns import AsyncCache
async def hang():
    print("computing", flush=True)
    await asyncio.Event().wait()
asyncio.run(AsyncCache(60, name={name!r}, lease=1.0).get_or_insert("k", hang))
"""


def test_processes_share_a_computation_and_take_over_from_one_that_was_killed(redis_stack):
    name = str(uuid4())

    async def main():
        cache = AsyncCache(60, name=name, lease=1.0)
        with program(redis_stack, COMPUTING.format(name=name)) as other:
            assert await asyncio.to_thread(other.stdout.readline) == "computing\n"
            factory = Factory(os.getpid())
            mine = asyncio.ensure_future(cache.get_or_insert("k", factory))
            done, _ = await asyncio.wait([mine], timeout=1.5)
            assert not done
            assert factory.calls == 0
            other.kill()
            assert await mine == os.getpid()

    run(main())


def test_bad_input_to_a_cache_is_told(redis_stack):
    async def main():
        for ttl in (0, -1):
            with pytest.raises(ValueError, match="more than 0"):
                AsyncCache(ttl)
        cache = AsyncCache(60, name=str(uuid4()))
        with pytest.raises(TypeError, match="not the same text"):
            await cache.get(frozenset({1}))
        with pytest.raises(UnpicklableError):
            await cache.set("k", asyncio.get_running_loop())
        with pytest.raises(UnpicklableError):
            await cache.get_or_insert("k", lambda: asyncio.get_running_loop())
        assert await cache.get_or_insert("k", lambda: 1) == 1

    run(main())
