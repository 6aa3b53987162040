"""Calls under a shared limit: who waits gives the worker up, and what dies comes back to its own permit."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
from pathlib import Path
from uuid import uuid4

from graft.compat.async_patterns import Semaphore, on_workers
from graft.tasks.errors import NotYet
from graft.tasks.shared import admission, limited_calls
from graft.tasks.shared.rate_limiter import SharedRateLimiter
from graft.tasks.shared.semaphore import SharedSemaphore
from graft.tasks.shared.turns import Turn
from tests.stack import run_python


def die_once(path):
    """Takes its process along when it is run for the first time."""
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return "alive"


def asked(limit, ticket):
    """Seconds to wait, 0.0 if the limit admits the ticket."""
    refusal = admission.enter([Turn(limit, ticket)])
    return 0.0 if refusal is None else refusal.wait


def released(limit, ticket):
    admission.leave([Turn(limit, ticket)], None)


def test_what_says_that_a_turn_has_not_come_survives_a_pickle():
    again = pickle.loads(pickle.dumps(NotYet(0.25, "the rate 'x'")))
    assert again.wait == 0.25
    assert "the rate 'x', and asks again in 0.250 s" in str(again)


def test_who_waits_in_a_queue_comes_back_when_its_turn_may_have_come(redis_stack):
    limit = SharedSemaphore(str(uuid4()), 1)
    assert asked(limit, "holder") == 0
    waits = [asked(limit, ticket) for ticket in "abc"]
    assert waits == sorted(waits)  # In the order of asking, a permit's time apart.
    assert waits[0] >= 0.05
    assert waits[2] >= 2.5 * waits[0]
    released(limit, "holder")
    assert asked(limit, "b") == 0  # The permit lies idle for nobody who is not there.
    released(limit, "b")
    limited_calls.withdraw(limit, "a")
    limited_calls.withdraw(limit, "c")
    assert asked(limit, "d") == 0
    released(limit, "d")


CROWD = """
import asyncio, time
from graft.compat.async_patterns import Semaphore, on_workers
from tests import samples

async def seconds(call):
    await asyncio.gather(*(call(x) for x in range(20)))
    began = time.monotonic()
    await asyncio.gather(*(call(x) for x in range(60)))
    return time.monotonic() - began

async def main():
    free = await seconds(on_workers(samples.pause))
    print(free, await seconds(on_workers(samples.pause, limit=Semaphore(4, name="crowd"))))

asyncio.run(main())
"""


def test_no_permit_lies_idle_while_many_more_processes_want_one(fresh_stack):
    """Sixty calls of 0.2 s, four at once, take 3 s. When permits were kept for the absent it was many times that."""
    done = run_python(fresh_stack(cpu=10), CROWD, 120, env={"PYTHONPATH": "."})
    free, limited = map(float, done.stdout.split())
    assert limited < 3 * max(3.0, free), done.stdout + done.stderr


def test_waits_follow_how_long_permits_are_held(redis_stack):
    limit = SharedSemaphore(str(uuid4()), 2)
    for ticket in "abc":
        assert asked(limit, ticket) == 0
        time.sleep(0.02)
        released(limit, ticket)
    assert asked(limit, "one") == asked(limit, "two") == 0
    assert asked(limit, "x") < 0.1
    time.sleep(0.3)  # Nothing was given back meanwhile, so they are held for longer.
    assert 0.15 <= asked(limit, "y") <= 5.0


def test_a_coroutine_in_its_callers_process_waits_there(redis_stack):
    limit = SharedSemaphore(str(uuid4()), 1)
    began = []

    async def call(number):
        began.append(number)
        await asyncio.sleep(0.05)
        return number

    async def main():
        calls = [limited_calls.run_async(call, limit, f"ticket {number}", number) for number in range(4)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert len(began) == 4


def test_a_rate_tells_when_its_token_comes(redis_stack):
    limit = SharedRateLimiter(str(uuid4()), 1)
    assert asked(limit, "a") == 0
    assert 0 < asked(limit, "b") <= 1
    limited_calls.withdraw(limit, "b")
    assert 0 < asked(limit, "c") <= 1


def test_a_call_whose_process_died_comes_back_to_its_own_permit(stack, tmp_path):
    semaphore = Semaphore(1, name=str(uuid4()), lease=600)  # It does not come back by expiring.

    async def main():
        call = on_workers(die_once, limit=semaphore)
        assert await asyncio.wait_for(call(str(tmp_path / "died")), 60) == "alive"
        assert await asyncio.to_thread(semaphore.available_permits) == 1

    asyncio.run(main())
