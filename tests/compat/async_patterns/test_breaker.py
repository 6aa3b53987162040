"""D.5: the circuit breaker, in one process and in several."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from graft.compat.async_patterns import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitError,
    CircuitOpenError,
    CircuitState,
)
from tests.stack import run_python


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.redis)])
def name(request):
    if request.param == "local":
        return None
    request.getfixturevalue("redis_stack")
    return f"test {uuid4()}"


def fail():
    raise OSError("down")


async def succeed():
    return "up"


async def fails(breaker, times):
    for _ in range(times):
        with pytest.raises(OSError, match="down"):
            await breaker.call(fail)


def test_only_failures_in_a_row_open_it_and_then_it_refuses_without_running(name):
    ran = []

    async def main():
        breaker = CircuitBreaker(3, 2, 60, name=name)
        assert breaker.state is CircuitState.CLOSED
        await fails(breaker, 2)
        assert await breaker.call(succeed) == "up"
        await fails(breaker, 2)
        assert breaker.state is CircuitState.CLOSED
        await fails(breaker, 1)
        assert breaker.state is CircuitState.OPEN
        with pytest.raises(CircuitOpenError, match="60 s"):
            await breaker.call(lambda: ran.append(1))
        assert ran == []
        assert issubclass(CircuitOpenError, CircuitError)

    run(main())


def test_after_its_timeout_it_lets_through_and_closes_after_enough_successes(name):
    async def main():
        breaker = CircuitBreaker(CircuitBreakerConfig(1, 2, 0), name=name)
        await fails(breaker, 1)
        assert breaker.state is CircuitState.OPEN
        assert await breaker.call(succeed) == "up"
        assert breaker.state is CircuitState.HALF_OPEN
        assert await breaker.call(lambda: "plain") == "plain"
        assert breaker.state is CircuitState.CLOSED

    run(main())


def test_a_failure_on_trial_opens_it_again_at_once(name):
    async def main():
        breaker = CircuitBreaker(2, 2, 0, name=name)
        await fails(breaker, 2)
        await breaker.call(succeed)
        await fails(breaker, 1)
        assert breaker.state is CircuitState.OPEN

    run(main())


def test_calls_begun_before_it_opened_close_nothing(name):
    async def main():
        breaker = CircuitBreaker(1, 1, 60, name=name)
        gate = asyncio.Event()
        entered = asyncio.Event()

        async def slow():
            entered.set()
            await gate.wait()
            return "late"

        late = asyncio.ensure_future(breaker.call(slow))
        await entered.wait()
        await fails(breaker, 1)
        gate.set()
        assert await late == "late"
        assert breaker.state is CircuitState.OPEN

    run(main())


def test_a_limit_bounds_the_calls_on_trial_and_a_cancelled_one_makes_room(name):
    async def main():
        breaker = CircuitBreaker(1, 1, 0.2, name=name, half_open_limit=1)
        await fails(breaker, 1)
        entered = asyncio.Event()

        async def hang():
            entered.set()
            await asyncio.Event().wait()

        async def until_let_through():
            while True:
                try:
                    return await breaker.call(hang)
                except CircuitOpenError:
                    await asyncio.sleep(0.01)

        trial = asyncio.ensure_future(until_let_through())
        await entered.wait()
        with pytest.raises(CircuitOpenError):
            await breaker.call(succeed)
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        while True:
            try:
                assert await breaker.call(succeed) == "up"
                break
            except CircuitOpenError:
                await asyncio.sleep(0.01)
        assert breaker.state is CircuitState.CLOSED

    run(main())


def test_it_serves_one_loop_after_the_other(name):
    breaker = CircuitBreaker(name=name)
    for _ in range(2):
        assert run(breaker.call(succeed)) == "up"


@pytest.mark.parametrize("wrong", [(0,), (1, 0), (1, 1, -1)])
def test_thresholds_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError):
        CircuitBreaker(*wrong)


def test_processes_share_a_circuit(redis_stack):
    name = str(uuid4())

    async def main():
        await fails(CircuitBreaker(2, name=name), 2)

    run(main())
    code = f"""
import asyncio
from graft.compat.async_patterns import *
async def main():
    breaker = CircuitBreaker(2, name={name!r})
    print(breaker.state.name)
    try:
        await breaker.call(lambda: print("ran"))
    except CircuitOpenError:
        print("refused")
asyncio.run(main())
"""
    done = run_python(redis_stack, code)
    assert done.stdout == "OPEN\nrefused\n", done.stderr
