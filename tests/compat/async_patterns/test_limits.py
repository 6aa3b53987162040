"""D.3: semaphore, connection pool, rate limiter; in one process, in several, and for work on the workers."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.compat.async_patterns import ConnectionPool, RateLimiter, Semaphore, fan_out_fan_in, on_workers
from graft.compat.fair_semaphore import FairSemaphore
from graft.tasks.shared.primitive import DifferentLimitsError
from tests import samples
from tests.compat.async_patterns.programs import program
from tests.stack import run_python, wait_until


def run(main):
    return asyncio.run(asyncio.wait_for(main, 90))


@pytest.fixture(params=["local", pytest.param("cluster", marks=pytest.mark.redis)])
def name(request):
    """None for a limit of this process, a fresh name for one of the cluster."""
    if request.param == "local":
        return None
    request.getfixturevalue("redis_stack")
    return f"test {uuid4()} {{é}}:*"


class Watched:
    """Notes who runs, and how many at once."""

    def __init__(self):
        self.running = set()
        self.order = []
        self.highest = 0

    async def hold(self, acquire, label, seconds=0.05):
        async with acquire as permit:
            self.order.append(label)
            assert permit.id not in self.running
            self.running.add(permit.id)
            self.highest = max(self.highest, len(self.running))
            await asyncio.sleep(seconds)
            self.running.discard(permit.id)
            return permit.id


# ---- semaphore and pool ----------------------------------------------------------------------------------------------


def test_ten_jobs_on_three_permits_take_four_rounds(name):
    watched = Watched()

    async def main():
        semaphore = Semaphore(3, name=name)
        began = time.monotonic()
        await asyncio.gather(*(watched.hold(semaphore.acquire(), job, 0.2) for job in range(10)))
        assert watched.highest == 3
        assert time.monotonic() - began >= 0.79
        assert await asyncio.to_thread(semaphore.available_permits) == 3

    run(main())


def test_eight_jobs_on_three_connections(name):
    watched = Watched()

    async def main():
        pool = ConnectionPool(3, name=name)
        began = time.monotonic()
        ids = await asyncio.gather(*(watched.hold(pool.acquire(), job, 0.2) for job in range(8)))
        assert set(ids) == {1, 2, 3}
        assert time.monotonic() - began >= 0.59
        assert await asyncio.to_thread(pool.available) == 3

    run(main())


def test_first_come_first_served(name):
    watched = Watched()

    async def main():
        semaphore = Semaphore(1, name=name)
        first = await semaphore.acquire()
        jobs = []
        for job in range(5):
            jobs.append(asyncio.ensure_future(watched.hold(semaphore.acquire(), job, 0)))
            if name is None:
                await asyncio.sleep(0)
            else:
                await asyncio.to_thread(
                    wait_until, lambda job=job: len(_line(semaphore)) == job + 1, what="a place in the line"
                )
        first.release()
        await asyncio.gather(*jobs)
        assert watched.order == [0, 1, 2, 3, 4]

    run(main())


def _line(semaphore):
    from graft.config.redis_client import shared

    return shared().zrange(semaphore.shared.keys[1], 0, -1)


def test_a_permit_comes_back_from_an_error_a_second_release_and_a_cancelled_waiter(name):
    async def main():
        semaphore = Semaphore(1, name=name)
        with pytest.raises(ValueError, match="inside"):
            async with semaphore:
                raise ValueError("inside")
        permit = await semaphore.acquire()
        waiting = asyncio.ensure_future(_enter(semaphore))
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await permit.give_back()
        permit.release()
        async with semaphore.acquire() as again:
            assert again.id == 1
            assert await asyncio.to_thread(semaphore.available_permits) == 0
        assert await asyncio.to_thread(semaphore.available_permits) == 1

    async def _enter(semaphore):
        async with semaphore:
            raise AssertionError("the permit was out")

    run(main())


def test_a_permit_that_is_forgotten_comes_back(name):
    async def main():
        semaphore = Semaphore(1, name=name)
        for _ in range(3):
            await semaphore.acquire()
        await asyncio.to_thread(wait_until, lambda: semaphore.available_permits() == 1)

    run(main())


def test_limits_serve_one_loop_after_the_other(name):
    semaphore = Semaphore(1, name=name)
    pool = ConnectionPool(1, name=name)
    limiter = RateLimiter(100, name=name)

    async def main():
        async with semaphore, pool.acquire():
            await limiter.acquire()

    for _ in range(3):
        run(main())


def test_loops_of_several_threads_share_a_local_semaphore():
    semaphore = Semaphore(2)
    running, highest = [], []

    async def job():
        async with semaphore:
            running.append(1)
            highest.append(len(running))
            await asyncio.sleep(0.002)
            running.pop()

    async def main():
        await asyncio.gather(*(job() for _ in range(20)))

    threads = [threading.Thread(target=run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(highest) == 80
    assert max(highest) <= 2
    assert semaphore.available_permits() == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["ask", "cancel", "back"]), max_size=40))
def test_permits_are_never_lost_nor_doubled(limit, steps):
    async def main():
        semaphore = FairSemaphore(limit)
        asked, held = [], 0
        for step in steps:
            if step == "ask":
                asked.append(asyncio.ensure_future(semaphore.acquire()))
            elif step == "cancel" and asked:
                asked.pop().cancel()
            elif step == "back" and held:
                held -= 1
                semaphore.release()
            for _ in range(3):
                await asyncio.sleep(0)
            held += sum(task.done() and not task.cancelled() for task in asked)
            asked = [task for task in asked if not task.done()]
            assert held <= limit
            assert semaphore.free == limit - held
            assert not asked or held == limit
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("make", [Semaphore, ConnectionPool, RateLimiter])
def test_a_limit_below_one_is_refused(make):
    with pytest.raises(ValueError, match="at least 1"):
        make(0)
    with pytest.raises(TypeError):
        make("3")


# ---- several processes -----------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, sys
from graft.compat.async_patterns import Semaphore
async def main():
    async with Semaphore({limit}, name={name!r}, lease={lease}):
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def test_processes_share_a_semaphore_and_a_killed_holders_permit_returns(redis_stack):
    name = str(uuid4())

    async def main():
        semaphore = Semaphore(2, name=name, lease=1.0)
        with program(redis_stack, HOLDER.format(limit=2, name=name, lease=1.0)) as holder:
            assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
            async with semaphore:
                assert await asyncio.to_thread(semaphore.available_permits) == 0
                waiting = asyncio.ensure_future(_enter(semaphore))
                done, _ = await asyncio.wait([waiting], timeout=1.5)  # Longer than a lease: it is renewed.
                assert not done
                holder.kill()
                assert await waiting in (1, 2)
        assert await asyncio.to_thread(semaphore.available_permits) == 2

    async def _enter(semaphore):
        async with semaphore as permit:
            return permit.id

    run(main())


def test_another_limit_for_the_same_name_is_refused(redis_stack):
    name = str(uuid4())

    async def main():
        async with Semaphore(2, name=name):
            with pytest.raises(DifferentLimitsError, match="limit 2, and this process asks for limit 3"):
                await Semaphore(3, name=name).acquire()
            await Semaphore(2, name=name).acquire()
        await RateLimiter(5, name=name).acquire()
        with pytest.raises(DifferentLimitsError, match="5 per second"):
            await RateLimiter(6, name=name).acquire()

    run(main())


RESTART = """
import asyncio, sys
from graft.compat.async_patterns import Semaphore
async def main():
    semaphore = Semaphore(1, name="restart", lease=3.0)
    order = []
    async def second():
        async with semaphore:
            order.append("second")
    async with semaphore:
        waiting = asyncio.ensure_future(second())
        await asyncio.sleep(0.2)
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        order.append("first")
    await waiting
    print(order, flush=True)
asyncio.run(main())
"""


def test_a_semaphore_outlives_a_restart_of_redis(fresh_stack):
    stack = fresh_stack(cpu=0)
    stack.start() if not stack.redis or not stack.redis.pid else None
    with program(stack, RESTART) as client:
        assert client.stdout.readline() == "held\n"
        stack.kill_redis()
        stack.start_redis()
        held = "graft:shared:semaphore:restart:held"
        with stack.connect() as redis:
            lease = redis.zrange(held, 0, -1, withscores=True)
            wait_until(lambda: redis.zrange(held, 0, -1, withscores=True) != lease, what="the renewal")
            redis.flushall()  # Now it has lost everything.
            wait_until(lambda: redis.zcard(held) == 1, what="the holder's return")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "['first', 'second']\n"


# ---- rate ------------------------------------------------------------------------------------------------------------


def test_fifteen_at_five_per_second(name):
    async def main():
        limiter = RateLimiter(5, name=name)
        began = time.monotonic()
        ends = []

        async def ask(number):
            await limiter.acquire()
            ends.append((time.monotonic() - began, number))

        if name is None:
            await asyncio.gather(*(ask(number) for number in range(15)))
            assert [number for _, number in ends] == list(range(15))
        else:
            for number in range(15):
                await ask(number)
        for place, (seconds, _) in enumerate(ends):
            assert seconds >= max(0, place - 4) * 0.2 - 0.02

    run(main())


def test_a_waiter_that_gives_up_costs_the_others_no_token(name):
    async def main():
        limiter = RateLimiter(2, name=name)
        await limiter.acquire()
        await limiter.acquire()
        began = time.monotonic()
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await limiter.acquire()
        await limiter.acquire()
        assert time.monotonic() - began >= 0.9

    run(main())


RATED = """
import asyncio, time
from graft.compat.async_patterns import RateLimiter
async def main():
    limiter = RateLimiter(4, name={name!r})
    for _ in range(4):
        await limiter.acquire()
        print(time.time(), flush=True)
asyncio.run(main())
"""


def test_processes_share_a_rate(redis_stack):
    code = RATED.format(name=str(uuid4()))
    with program(redis_stack, code) as one, program(redis_stack, code) as two:
        times = sorted(float(line) for process in (one, two) for line in process.stdout)
    assert len(times) == 8
    assert times[-1] - times[0] >= 0.98 - 0.05


# ---- on the workers --------------------------------------------------------------------------------------------------


def test_calls_that_wait_for_a_permit_leave_the_workers_free(stack):
    semaphore = Semaphore(1, name=str(uuid4()))

    async def main():
        async with semaphore:
            held_up = [asyncio.ensure_future(on_workers(samples.square, limit=semaphore)(x)) for x in range(6)]
            await asyncio.to_thread(wait_until, lambda: len(_line(semaphore)) == 6, what="six in line")
            # Two pool processes, six calls that wait: others still run.
            assert await fan_out_fan_in(range(4), 2, samples.square) is not None
            assert not any(call.done() for call in held_up)
        assert await asyncio.gather(*held_up) == [x * x for x in range(6)]

    run(main())


def test_calls_for_the_workers_keep_to_a_semaphore(stack, tmp_path):
    semaphore = Semaphore(1, name=str(uuid4()))
    path = str(tmp_path / "log")

    async def main():
        call = on_workers(enter_and_leave, limit=semaphore)
        await asyncio.gather(*(call(path) for _ in range(5)))

    run(main())
    lines = (tmp_path / "log").read_text().split()
    assert lines == ["in", "out"] * 5


def enter_and_leave(path):
    samples.note((path, "in"))
    time.sleep(0.03)
    samples.note((path, "out"))


def test_async_calls_for_the_workers_keep_to_a_rate(stack):
    limiter = RateLimiter(5, name=str(uuid4()))

    async def main():
        began = time.monotonic()
        call = on_workers(samples.async_square, limit=limiter)
        assert await asyncio.gather(*(call(x) for x in range(8))) == [x * x for x in range(8)]
        assert time.monotonic() - began >= 0.6 - 0.02

    run(main())


def test_waits_are_no_retries_and_failures_are(stack, tmp_path):
    semaphore = Semaphore(1, name=str(uuid4()))

    async def main():
        call = on_workers(samples.fail_until, limit=semaphore, retry=2)
        async with semaphore:
            running = asyncio.ensure_future(call((str(tmp_path / "runs"), 3)))
            await asyncio.to_thread(wait_until, lambda: len(_line(semaphore)) == 1, what="its place")
            await asyncio.wait([running], timeout=0.5)
        assert await running == 3
        with pytest.raises(ConnectionError, match="run 1 of 9"):
            await on_workers(samples.fail_until, limit=semaphore)((str(tmp_path / "others"), 9))
        with pytest.raises(ConnectionError, match="run 3 of 9"):
            await call((str(tmp_path / "many"), 9))

    run(main())


def test_a_call_that_is_given_up_holds_nobody_up(stack):
    semaphore = Semaphore(1, name=str(uuid4()))

    async def main():
        call = on_workers(samples.square, limit=semaphore)
        async with semaphore:
            given_up = asyncio.ensure_future(call(1))
            await asyncio.to_thread(wait_until, lambda: len(_line(semaphore)) == 1, what="its place")
            given_up.cancel()
            with suppress(asyncio.CancelledError):
                await given_up
            await asyncio.to_thread(wait_until, lambda: not _line(semaphore), what="an empty line")
        assert await call(3) == 9

    run(main())


def test_a_limit_for_the_workers_needs_a_name_and_local_mode_keeps_it_here(redis_stack):
    with pytest.raises(ValueError, match="name"):
        on_workers(samples.square, limit=Semaphore(1))
    code = """
import asyncio
from graft.compat.async_patterns import *
from tests import samples
async def main():
    semaphore = Semaphore(1, name="here")
    call = on_workers(samples.square, limit=semaphore)
    print(await asyncio.gather(*(call(x) for x in range(3))), semaphore.available_permits())
asyncio.run(main())
"""
    done = run_python(redis_stack, code, env={"GRAFT_MODE": "local", "PYTHONPATH": "."})
    assert done.stdout == "[0, 1, 4] 1\n", done.stderr


def test_a_broker_that_does_not_answer_is_named(redis_stack):
    code = """
import asyncio
from graft.compat.async_patterns import *
for limit in (Semaphore(1, name="x"), RateLimiter(1, name="x")):
    async def main():
        await limit.acquire()
    try:
        asyncio.run(main())
    except ConnectionError as error:
        print(type(error).__name__, "127.0.0.1:1/" in str(error))
"""
    url = "redis://127.0.0.1:1/0"
    done = run_python(redis_stack, code, env={"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url})
    assert done.stdout == "BrokerUnavailable True\n" * 2, done.stderr
