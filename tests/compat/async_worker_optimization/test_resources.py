"""A.4: ResourcePool, also as the size of a real worker group."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, LoadLevel, ResourcePool
from graft.compat.async_worker_optimization.worker_group import Wish, WorkerGroup
from graft.config.celery_app import app
from graft.config.deployment import current
from graft.tasks.errors import TaskQueueError
from tests.stack import run_python, wait_until

WAIT = 60.0


def sizes(pool, loads):
    return [pool.simulate_load(high) or pool.get_active_workers() for high in loads]


def test_a_pool_starts_at_its_floor():
    pool = ResourcePool("pool", 2, 8)
    assert (pool.name, pool.min_workers, pool.max_workers) == ("pool", 2, 8)
    assert (pool.scaling_factor, pool.idle_timeout, pool.active_workers) == (2.0, 30, 2)
    assert (pool.get_active_workers(), pool.get_utilization(), pool.load_level) == (2, 0.25, LoadLevel.LOW)
    assert pool.simulate_load(True) is None


@pytest.mark.parametrize(
    ("low", "high", "factor", "loads", "expected"),
    [
        (2, 10, 2, "hhhhllll", [4, 8, 10, 10, 5, 2, 2, 2]),
        (3, 10, 2.5, "hhhlll", [7, 10, 10, 4, 3, 3]),
        (3, 10, 1.5, "hhhlll", [4, 6, 9, 6, 4, 3]),
        (1, 5, 1.5, "hhhh", [2, 3, 4, 5]),
        (0, 5, 2, "hhl", [1, 2, 1]),
        (2, 10, 1.0, "hhl", [2, 2, 2]),
        (2, 10, 0.5, "hlll", [2, 4, 8, 10]),
        (0, 0, 2, "hl", [0, 0]),
    ],
)
def test_load_multiplies_and_divides_within_the_bounds(low, high, factor, loads, expected):
    assert sizes(ResourcePool("pool", low, high, factor), [load == "h" for load in loads]) == expected


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.floats(0.01, 100),
    st.lists(st.sampled_from([True, False, 1, 0, "yes", "", None]), max_size=30),
)
def test_the_size_follows_the_formula_and_never_leaves_the_bounds(low, span, factor, loads):
    pool = ResourcePool("pool", low, low + span, factor)
    for high in loads:
        before = pool.active_workers
        pool.simulate_load(high)
        assert pool.min_workers <= pool.active_workers <= pool.max_workers
        assert type(pool.active_workers) is int
        if high and factor > 1 and before < pool.max_workers:
            assert pool.active_workers == min(max(int(before * factor), before + 1), pool.max_workers)
        elif high:
            assert pool.active_workers == min(max(int(before * factor), low), pool.max_workers)
        else:
            assert pool.active_workers == max(low, min(int(before / factor), pool.max_workers))


@pytest.mark.parametrize(
    ("low", "high", "factor"), [(3, 2, 2.0), (1, 2, 0), (1, 2, -1.5), (1, 2, float("nan")), (1, 2, float("inf"))]
)
def test_figures_that_no_group_can_have_are_refused(low, high, factor):
    with pytest.raises(ValueError):
        ResourcePool("pool", low, high, factor)


def test_a_pool_without_a_ceiling_is_not_used_at_all():
    assert ResourcePool("pool", 0, 0).get_utilization() == 0.0


@pytest.mark.parametrize(
    ("level", "free", "narrow"),
    [(LoadLevel.LOW, 2, 3), (LoadLevel.MEDIUM, 4, 4), (LoadLevel.HIGH, 8, 6), (LoadLevel.CRITICAL, 16, 6)],
)
def test_all_four_levels_have_their_size(level, free, narrow):
    for bounds, size in (((1, 20), free), ((3, 6), narrow)):
        pool = ResourcePool("pool", *bounds)
        pool.apply_load(level)
        assert (pool.active_workers, pool.load_level) == (size, level)


# ---- recorded in Redis -----------------------------------------------------------------------------------------------


def test_a_managed_pool_is_recorded_with_every_change(redis):
    pool = AsyncWorkerOptimizer().manage_resource_pool("recorded", {"min_workers": 2, "max_workers": 9})
    pool.simulate_load(True)
    kept = ResourcePool.recorded("recorded")
    assert (kept.name, kept.min_workers, kept.max_workers, kept.active_workers) == ("recorded", 2, 9, 4)
    assert (kept.scaling_factor, kept.idle_timeout, kept.load_level) == (2.0, 30.0, LoadLevel.HIGH)
    assert kept.worker_group is None
    assert redis.hget("graft:compat:resource_pool:recorded", "active_workers") in (b"4", "4")
    assert redis.ttl("graft:compat:resource_pool:recorded") > 86400


def test_a_pool_that_nobody_manages_is_not_recorded(redis):
    ResourcePool("unmanaged", 1, 2).simulate_load(True)
    with pytest.raises(KeyError, match="unmanaged"):
        ResourcePool.recorded("unmanaged")


NO_BROKER = """
import logging, os, socket, sys

mute = socket.create_server(("127.0.0.1", 0))
url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
os.environ |= {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, ResourcePool, redis_records
from graft.tasks.errors import BrokerUnavailable

logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s", stream=sys.stderr)
pool = AsyncWorkerOptimizer().manage_resource_pool("nowhere", {"min_workers": 1, "max_workers": 2})
connection, _ = mute.accept()
assert not redis_records.settle(0), "it waited for the broker"
mute.close()
connection.close()
assert redis_records.settle(60)
try:
    ResourcePool.recorded("nowhere")
except BrokerUnavailable:
    print(pool.get_active_workers())
"""


def test_managing_a_pool_needs_no_broker(redis_stack):
    """The broker accepts connections and says nothing, and then is gone."""
    done = run_python(redis_stack, NO_BROKER)
    assert done.stdout.split() == ["1"], done.stderr
    assert "DEBUG graft:compat:resource_pool:nowhere could not be recorded" in done.stderr
    assert {line.partition(" ")[0] for line in done.stderr.splitlines()} == {"DEBUG"}


def test_local_mode_records_nothing(monkeypatch, caplog):
    monkeypatch.setenv("GRAFT_MODE", "local")
    current.reread_settings()
    try:
        with caplog.at_level("DEBUG"):
            AsyncWorkerOptimizer().manage_resource_pool("here", {"min_workers": 1, "max_workers": 2})
        assert "is not recorded: GRAFT_MODE=local" in caplog.text
    finally:
        monkeypatch.undo()
        current.reread_settings()


# ---- bound to workers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "present", "surplus_since", "due"),
    [(4, 2, None, 100.0), (2, 2, None, 100.0), (1, 2, None, 130.0), (1, 2, 90.0, 120.0), (4, 2, 90.0, 100.0)],
)
def test_a_group_grows_at_once_and_shrinks_when_idle_for_long_enough(wanted, present, surplus_since, due):
    assert Wish(wanted, wanted, 30.0, made=100.0).due(present, surplus_since) == due


@pytest.fixture(scope="module")
def worker(stack):
    """A group of its own: the part of its name before the ``@``."""
    with stack.another_worker("cpu", 2) as worker:
        yield worker


def group_of(worker):
    return worker.name.partition("@")[0]


def grown(worker, size):
    """The pids of its pool processes, once they are *size*: a worker answers before its pool has followed."""

    def pids():
        return set(app.control.inspect([worker.name], timeout=10).stats()[worker.name]["pool"]["processes"])

    wait_until(lambda: len(pids()) == size, what=f"{size} processes")
    return pids()


@pytest.mark.acl_role("operator")
def test_a_group_obeys_the_latest_wish_only(worker):
    group = WorkerGroup(group_of(worker))
    group.want(3, 3, idle_timeout=0.0)
    assert group.settled().result(WAIT) == {worker.name: 3}
    before = grown(worker, 3)
    group.want(1, 1, idle_timeout=3600.0)
    with pytest.raises(TimeoutError):
        group.settled().result(0.2)
    group.want(4, 4, idle_timeout=3600.0)  # The surplus is needed again before its time is over.
    assert group.settled().result(WAIT) == {worker.name: 4}
    assert before < grown(worker, 4)


def test_a_group_that_does_not_answer_says_so_and_is_asked_again(redis, caplog):
    group = WorkerGroup("gpu")
    for asked in (1, 2):
        group.want(3, 3, 30.0)
        with pytest.raises(TaskQueueError, match="no worker named gpu@… is alive"):
            group.settled().result(WAIT)
        told = [line for line in caplog.messages if line.startswith("worker group gpu was not resized to 3: no worker")]
        assert len(told) == asked


@pytest.mark.acl_role("operator")
def test_giving_up_the_wait_stops_nobody_else_from_waiting(worker):
    async def main():
        pool = ResourcePool("waited for", 2, 4, idle_timeout=3600.0)
        pool.apply_load(LoadLevel.MEDIUM)
        assert await pool.bind(group_of(worker)).applied() == {worker.name: 4}
        grown(worker, 4)
        pool.simulate_load(False)  # Due in an hour.
        patient = asyncio.ensure_future(pool.applied())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.applied(), 0.01)
        pool.simulate_load(True)
        return await patient

    assert asyncio.run(asyncio.wait_for(main(), WAIT)) == {worker.name: 4}


def test_a_pool_that_is_not_bound_has_nothing_to_wait_for():
    with pytest.raises(RuntimeError, match="not bound"):
        asyncio.run(ResourcePool("pool", 1, 2).applied())


SIZING = """
import asyncio, time
from graft.compat.async_worker_optimization import AsyncWorkerOptimizer, LoadLevel, ResourcePool

async def main():
    optimizer = AsyncWorkerOptimizer()
    (worker,) = await optimizer.live_workers()
    group = worker["id"].partition("@")[0]
    config = {"min_workers": 1, "max_workers": 4, "idle_timeout": 1.0}
    pool = optimizer.manage_resource_pool("bound", config, worker_group=group)
    pool.apply_load(LoadLevel.MEDIUM)
    assert await pool.applied() == {worker["id"]: 4}
    pool.simulate_load(False)
    began = time.monotonic()
    assert await pool.applied() == {worker["id"]: 2}
    assert time.monotonic() - began > 0.9
    while [each["capacity"] for each in await optimizer.live_workers()] != [2]:
        await asyncio.sleep(0.05)
    kept = ResourcePool.recorded("bound")
    print(kept.active_workers, kept.load_level.name)

asyncio.run(asyncio.wait_for(main(), 60))
"""


@pytest.mark.acl_role("operator")
def test_a_bound_pool_sizes_real_workers(fresh_stack):
    finished = run_python(fresh_stack(cpu=2), SIZING)
    assert finished.stdout.split() == ["2", "LOW"], finished.stderr
