"""Calls under a shared limit: who waits gives the worker up, and what dies comes back to its own permit."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from pathlib import Path
from uuid import uuid4

import pytest

from graft.compat.async_patterns import Semaphore, on_workers
from graft.tasks.errors import NotYet
from graft.tasks.policy import ONCE, RetryPolicy
from graft.tasks.shared import limited_calls
from graft.tasks.shared.limited_calls import POLL, SLOWEST_POLL, SOONEST_POLL, AdmissionPolicy, HoldTimes
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore


def die_once(path):
    """Takes its process along when it is run for the first time."""
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "alive"


def test_waiting_for_a_turn_is_answered_with_its_delay_and_nothing_else_is():
    policy = AdmissionPolicy.around(RetryPolicy(runs=3))
    assert policy.wait_after(1000, NotYet(0.25)) == 0.25
    assert policy.wait_after(1, OSError()) is None
    assert policy.runs == 3
    again = pickle.loads(pickle.dumps(NotYet(0.25)))
    assert again.wait == 0.25
    assert "0.250 s" in str(again)


def test_the_first_in_line_looks_most_often(redis_stack):
    limit = SharedSemaphore(str(uuid4()), 1)
    limited_calls.admit(limit, "holder")
    waits = []
    for ticket in "abc":
        with pytest.raises(NotYet) as not_yet:
            limited_calls.admit(limit, ticket)
        waits.append(not_yet.value.wait)
    assert waits == pytest.approx([0.1, 0.2, 0.3])
    limited_calls.release(limit, "holder")
    with pytest.raises(NotYet):
        limited_calls.admit(limit, "b")
    limited_calls.admit(limit, "a")
    limited_calls.release(limit, "a")
    limited_calls.withdraw(limit, "b")
    limited_calls.admit(limit, "c")
    limited_calls.release(limit, "c")


def test_a_poll_comes_when_the_turn_may_have_come():
    times, limit = HoldTimes(), SharedSemaphore("polls", 20)
    assert times.until(limit, 40) == pytest.approx(POLL * 2, rel=0.5)  # Nothing is known yet.
    for ticket in "abc":
        times.begin(ticket)
        time.sleep(0.02)
        times.end(limit, ticket)
    assert times.until(limit, 200) < POLL * 10  # As long as ten permits were held, each.
    assert times.until(limit, 1) == SOONEST_POLL
    times.until(limit, 1)
    time.sleep(0.3)  # Nothing was given back meanwhile, so they are held for longer.
    assert times.until(limit, 200) >= 3.0
    assert times.until(limit, 10**6) == SLOWEST_POLL


def test_a_coroutine_waits_in_place_for_a_turn_that_is_near(redis_stack):
    limit = SharedSemaphore(str(uuid4()), 1)
    began = []

    async def call(number):
        began.append(number)
        await asyncio.sleep(0.05)
        return number

    async def main():
        calls = [limited_calls.run_async(call, limit, f"ticket {number}", ONCE, number) for number in range(4)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert len(began) == 4


def test_a_rate_tells_when_its_token_comes(redis_stack):
    limit = SharedRateLimiter(str(uuid4()), 1)
    limited_calls.admit(limit, "a")
    with pytest.raises(NotYet) as not_yet:
        limited_calls.admit(limit, "b")
    assert 0 < not_yet.value.wait <= 1
    limited_calls.withdraw(limit, "b")
    with pytest.raises(NotYet) as not_yet:
        limited_calls.admit(limit, "c")
    assert 0 < not_yet.value.wait <= 1


def test_a_call_whose_process_died_comes_back_to_its_own_permit(stack, tmp_path):
    semaphore = Semaphore(1, name=str(uuid4()), lease=600)  # It does not come back by expiring.

    async def main():
        call = on_workers(die_once, limit=semaphore)
        assert await asyncio.wait_for(call(str(tmp_path / "died")), 60) == "alive"
        assert await asyncio.to_thread(semaphore.available_permits) == 1

    asyncio.run(main())
