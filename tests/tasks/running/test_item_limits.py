"""Items under limits: who may not begin goes back for later, and nobody else is held up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import pytest

from graft import CeleryExecutor, Pool, RetryPolicy, submit
from graft.compat.async_patterns import Semaphore, fan_out_fan_in, map_reduce, on_workers
from graft.compat.celery_integration_framework import CeleryIntegrationFramework
from graft.compat.worker_pool import WorkerPool
from graft.config.redis_client import shared
from graft.tasks.shared.semaphore import SharedSemaphore
from tests import limited, samples
from tests.people import letters
from tests.stack import run_python, wait_until


def calls(folder, numbers):
    return [((str(folder), number), {}) for number in numbers]


def begun(folder):
    """When items began, in order."""
    path = Path(folder, "log")
    if not path.exists():
        return []
    return sorted(float(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("in"))


def at_once(folder):
    """How many ran at the same time, at most."""
    lines = [line.split() for line in Path(folder, "log").read_text().splitlines()]
    running = most = 0
    for _, what in sorted((float(at), what) for what, at in lines):
        running += 1 if what == "in" else -1
        most = max(most, running)
    return most


def fullest(times, seconds):
    return max(sum(first <= at < first + seconds for at in times) for first in times)


@pytest.mark.parametrize("func", [limited.three_a_second, limited.three_a_second_async], ids=["plain", "async"])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_no_window_sees_more_than_the_rate(stack, tmp_path, func, batch_size):
    batch = submit(func, calls(tmp_path, range(10)), unpack=True, batch_size=batch_size)
    assert batch.collect(timeout=60) == list(range(10))
    times = begun(tmp_path)
    assert len(times) == 10
    assert fullest(times, 0.95) <= 3  # A moment passes between admission and the first line.
    assert batch.progress().retries == 0


def test_items_that_wait_hold_up_nobody(stack, tmp_path):
    """Two pool processes, and more envelopes that wait for an hour."""
    waiting = submit(limited.once_an_hour, calls(tmp_path, range(8)), unpack=True, batch_size=2)
    wait_until(lambda: waiting.progress().done == 1, what="the one that may run this hour")
    assert submit(samples.square, range(6), batch_size=1).collect(timeout=30) == [x * x for x in range(6)]
    waiting.cancel()
    assert waiting.progress().done >= 1


def test_what_has_ended_does_not_wait_for_its_neighbours(stack, tmp_path):
    """One envelope: its first item is known while the others wait for an hour; another tenant's is not held up."""
    tenants = [tmp_path / name for name in "ab"]
    for tenant in tenants:
        tenant.mkdir()
    items = [*calls(tenants[0], [0, 1, 2]), *calls(tenants[1], [3])]
    batch = submit(limited.once_an_hour, items, unpack=True, batch_size=4)
    wait_until(lambda: batch.progress().done == 2, what="one of each tenant")
    assert [len(begun(tenant)) for tenant in tenants] == [1, 1]
    batch.cancel()


@pytest.mark.parametrize(("func", "most"), [(limited.one_at_a_time, 1), (limited.three_at_a_time, 3)])
def test_a_semaphore_bounds_what_runs_at_once(stack, tmp_path, func, most):
    batch = submit(func, calls(tmp_path, range(12)), unpack=True, batch_size=2)
    assert batch.collect(timeout=60) == list(range(12))
    assert at_once(tmp_path) <= most
    assert len(begun(tmp_path)) == 12


def test_one_tenants_limit_is_not_anothers(stack, tmp_path):
    tenants = [tmp_path / str(number) for number in range(6)]
    for tenant in tenants:
        tenant.mkdir()
    items = [call for tenant in tenants for call in calls(tenant, [7])]
    assert submit(limited.once_an_hour, items, unpack=True).collect(timeout=30) == [7] * 6


@pytest.mark.parametrize("func", [limited.service, limited.service_async], ids=["plain", "async"])
def test_an_open_breaker_sends_items_back_and_burns_no_retry(stack, tmp_path, func):
    (tmp_path / "down").touch()
    batch = submit(
        func, calls(tmp_path, range(12)), unpack=True, batch_size=12, concurrency=1,
        retry=RetryPolicy(runs=5, base=0.01, jitter="none"),
    )  # fmt: skip
    wait_until(lambda: len(begun(tmp_path)) >= 3, what="three failures")
    time.sleep(0.7)
    assert len(begun(tmp_path)) <= 4  # Without the breaker it would be dozens.
    (tmp_path / "down").unlink()
    assert batch.collect(timeout=60) == list(range(12))
    assert batch.progress().retries <= 5
    assert not [letter for letter in letters() if letter.function.startswith("tests.limited:service")]
    if func is limited.service:
        events = (tmp_path / "events").read_text().splitlines()
        assert "breaker opened 0" in events
        assert "breaker half_open 0" in events
        assert "breaker closed 0" in events
        assert any(line.startswith("breaker postponed") for line in events)


def test_a_failed_item_under_a_limit_has_its_own_number_of_runs(stack, tmp_path):
    """Waiting is no run: an item that failed once after it had waited runs again."""
    items = [((str(tmp_path), number), {}) for number in range(7)]
    batch = submit(limited.fails_once, items, unpack=True, batch_size=7, retry=RetryPolicy(2, base=0.0))
    assert batch.collect(timeout=60) == list(range(7))


def test_a_process_that_dies_takes_no_waiting_item_along(stack, tmp_path):
    batch = submit(limited.killer, calls(tmp_path, range(6)), unpack=True, batch_size=6)
    assert batch.collect(timeout=90) == list(range(6))


def test_calls_of_an_executor_are_limited(stack, tmp_path):
    with CeleryExecutor() as executor:
        futures = [executor.submit(limited.three_a_second, str(tmp_path), number) for number in range(7)]
        assert [future.result(60) for future in futures] == list(range(7))
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_calls_of_a_pool_with_an_initializer_are_limited(stack, tmp_path):
    with Pool(4, initializer=samples.identity, initargs=(0,)) as pool:
        items = [(str(tmp_path), number) for number in range(7)]
        assert pool.starmap(limited.three_a_second, items, chunksize=2) == list(range(7))
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_tasks_of_a_worker_pool_are_limited(stack, tmp_path):
    async def main():
        async with WorkerPool(3, 20) as pool:
            return await pool.spawn_parallel_batch([str(tmp_path)] * 7, limited.three_a_second)

    assert asyncio.run(main()) == [0] * 7
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_calls_of_the_old_framework_are_limited(stack, tmp_path):
    framework = CeleryIntegrationFramework()
    task = framework.create_task(limited.three_a_second, retry_limit=0)
    ids = [framework.submit_task(task, (str(tmp_path), number)) for number in range(5)]
    assert [framework.wait_for_task(each, 60).result for each in ids] == list(range(5))
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_a_limit_and_a_callers_own_semaphore_both_hold(stack, tmp_path):
    async def main():
        call = on_workers(limited.three_a_second, limit=Semaphore(1, name=str(uuid4())))
        return await asyncio.gather(*(call(str(tmp_path), number) for number in range(7)))

    assert asyncio.run(main()) == list(range(7))
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_what_makes_many_calls_in_one_item_refuses_limits(stack, tmp_path):
    with pytest.raises(ValueError, match="a call with chunks makes several calls of a function in one item"):
        asyncio.run(fan_out_fan_in([str(tmp_path)], 1, limited.three_a_second))
    with pytest.raises(ValueError, match="map_reduce makes several calls"):
        asyncio.run(map_reduce([str(tmp_path)], limited.three_a_second, max))


def test_limits_of_a_program_and_of_a_lambda_hold_too(stack, tmp_path):
    code = f"""
import graft
from tests import samples

@graft.limit(rate="3/second", by="folder")
def mine(folder, number=0):
    import time
    from tests import samples
    samples.note((folder + "/log", f"in {{time.time():.6f}}"))
    return number

print(graft.submit(mine, [(({str(tmp_path)!r}, n), {{}}) for n in range(7)], unpack=True).collect(timeout=60))
double = graft.limit(semaphore=1, name="double-{tmp_path}")(lambda x: 2 * x)
print(graft.submit(double, [1, 2]).collect(timeout=60))
"""
    done = run_python(stack, code, env={"PYTHONPATH": "."})
    assert done.stdout == "[0, 1, 2, 3, 4, 5, 6]\n[2, 4]\n", done.stderr
    assert fullest(begun(tmp_path), 0.95) <= 3


def test_who_is_cancelled_while_he_waits_holds_up_nobody(stack, tmp_path):
    """The semaphore's line is empty when the items have been answered, and their envelope has been back."""
    limit = SharedSemaphore(f"tests.limited:one_at_a_time[{tmp_path}]", 1)
    assert limit.acquire("a stranger", 60).slot
    batch = submit(limited.one_at_a_time, calls(tmp_path, range(4)), unpack=True, batch_size=4)
    line = limit.keys[1]
    wait_until(lambda: shared().zcard(line), what="its place in line")
    batch.cancel()
    wait_until(lambda: not shared().zcard(line), what="an empty line")
    limit.release("a stranger")
    assert submit(limited.one_at_a_time, calls(tmp_path, [5]), unpack=True).collect(timeout=30) == [5]


def test_who_runs_into_his_key_function_fails_alone(stack):
    outcomes = sorted(submit(limited.keyed_by_a_digit, ["1", "x", "2"]).as_completed(30), key=lambda one: one.index)
    assert [type(one.error) for one in outcomes] == [type(None), ValueError, type(None)]


def test_items_of_a_durable_batch_are_limited(stack, tmp_path):
    batch = submit(limited.three_a_second, calls(tmp_path, range(7)), unpack=True, batch_size=3, durable=True)
    assert list(batch.collect(timeout=60)) == list(range(7))
    assert fullest(begun(tmp_path), 0.95) <= 3
