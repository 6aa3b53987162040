"""What is a leak and what is not: the rules, on series made for the purpose."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

import pytest
import redis as redis_py
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.tasks.leaks import borrowed_connections, findings, gc_types, keyspace
from graft.tasks.leaks.correlation import ran_meanwhile
from graft.tasks.leaks.keyspace import RedisSample, family
from graft.tasks.leaks.samples import LENGTH, Sample
from graft.tasks.leaks.theil_sen import POINTS, theil_sen, thin
from graft.tasks.leaks.trend import ENOUGH, PROCESS, SURE, Measure, trend

MEMORY = next(measure for measure in PROCESS if measure.name == "memory")
TICK = 30.0


def series(value: Callable[[int], float], ticks: int = 120) -> tuple[list[float], list[float]]:
    return [TICK * tick for tick in range(ticks)], [value(tick) for tick in range(ticks)]


@given(
    slope=st.floats(-1e3, 1e3), start=st.floats(-1e6, 1e6), ticks=st.integers(3, 60), odd=st.lists(st.floats(-1e6, 1e6))
)
def test_the_slope_of_a_straight_line_is_found_exactly(slope, start, ticks, odd):
    times = [float(tick) for tick in range(ticks)]
    found = theil_sen(times, [start + slope * at for at in times])
    assert found.per_second == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert found.low <= found.per_second <= found.high


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_fifth_of_odd_values_does_not_bend_the_slope(seed):
    chance = random.Random(seed)
    times = [float(tick) for tick in range(60)]
    values = [2.0 * at for at in times]
    for at in chance.sample(range(60), 12):
        values[at] = chance.uniform(-1e6, 1e6)
    assert theil_sen(times, values).per_second == pytest.approx(2.0, rel=0.25)


@given(st.lists(st.floats(-1e6, 1e6), max_size=2))
def test_too_few_points_prove_nothing(values):
    found = theil_sen(list(range(len(values))), values)
    assert found.low == -math.inf
    assert trend(list(range(len(values))), values, MEMORY).verdict == "clean"


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=500))
def test_thinning_keeps_the_range_and_the_order(values):
    times = [float(at) for at in range(len(values))]
    fewer, medians = thin(times, values)
    assert len(fewer) == len(medians) <= POINTS
    assert fewer == sorted(fewer)
    assert min(values) <= min(medians) <= max(medians) <= max(values)


@pytest.mark.parametrize(
    ("what", "value", "verdict"),
    [
        ("nothing happens", lambda tick: 60.0, "clean"),
        ("a leak of a MiB each tick", lambda tick: 60.0 + tick, "leaking"),
        ("a leak with noise", lambda tick: 60.0 + tick + 5 * math.sin(tick * 7.7), "leaking"),
        ("a slow leak", lambda tick: 60.0 + 0.1 * tick, "leaking"),
        ("growth within noise", lambda tick: 60.0 + 0.01 * tick, "clean"),
        ("one large object", lambda tick: 60.0 if tick < 50 else 400.0, "clean"),
        ("a cache that fills and is full", lambda tick: 60.0 + 200 * (1 - math.exp(-tick / 10)), "clean"),
        ("a process that warms up", lambda tick: 60.0 + min(tick, 30) * 3, "clean"),
        ("a saw", lambda tick: 60.0 + 10 * (tick % 12), "clean"),
        ("shrinking", lambda tick: 600.0 - tick, "clean"),
        ("a burst and back", lambda tick: 60.0 + (300 if 40 < tick < 60 else 0), "clean"),
    ],
)
def test_a_leak_goes_on_and_nothing_else_is_one(what, value, verdict):
    assert trend(*series(value), MEMORY).verdict == verdict, what


@pytest.mark.parametrize("measure", PROCESS, ids=lambda measure: measure.name)
def test_a_leak_of_each_kind_is_found_within_its_ticks(measure: Measure):
    """A tenth of the floor each tick: suspected as soon as it is past the floor, and soon sure."""
    times, values = series(lambda tick: 100.0 + tick * measure.floor / 10, SURE)
    assert trend(times[: ENOUGH - 1], values[: ENOUGH - 1], measure).verdict == "clean"
    assert trend(times[: ENOUGH + 4], values[: ENOUGH + 4], measure).verdict == "suspect"
    assert trend(times, values, measure).verdict == measure.worst


def test_a_leak_that_begins_after_hours_without_one_is_found_within_two_dozen_ticks():
    times, values = series(lambda tick: 60.0 + max(0, tick - 200) * 2, 240)
    assert trend(times[:205], values[:205], MEMORY).verdict == "clean"
    assert trend(times[:224], values[:224], MEMORY).verdict == "leaking"


@pytest.mark.parametrize("fills_in", [1, 3, 10])
def test_a_cache_that_fills_is_at_no_moment_a_leak(fills_in):
    times, values = series(lambda tick: 60.0 + 200 * (1 - math.exp(-tick / fills_in)), 240)
    assert not [at for at in range(1, 240) if trend(times[:at], values[:at], MEMORY).verdict == "leaking"]


def test_an_idle_process_stays_clean_through_a_day_of_ticks():
    """2,880 ticks as they are seen one after the other, with more noise than an idle process has."""
    chance = random.Random(7)
    drift = 0.0
    values: dict[str, list[float]] = {measure.name: [] for measure in PROCESS}
    alarms = []
    for tick in range(2880):
        drift = 0.98 * drift + chance.gauss(0, 0.3)  # What pages shared with siblings do.
        now = {
            "memory": 60 + drift + chance.gauss(0, 0.5),
            "files": 5 + chance.randint(0, 2),
            "sockets": 6 + chance.randint(0, 3),
            "pipes": 10 + chance.randint(0, 1),
            "threads": 3 + chance.randint(0, 1),
            "coroutines": chance.randint(0, 5),
            "objects": 90_000 + chance.gauss(0, 2000),
        }
        for name, value in now.items():
            values[name] = [*values[name][-LENGTH + 1 :], value]
        if tick % 5 == 0:
            times = [TICK * at for at in range(len(values["memory"]))]
            alarms += [
                (tick, each.name) for each in PROCESS if trend(times, values[each.name], each).verdict != "clean"
            ]
    assert alarms == []


def test_the_callable_that_ran_while_it_grew_is_named_first():
    chance = random.Random(3)
    steps = []
    for _ in range(60):
        leaky = chance.randint(0, 5)
        steps.append((2.0 * leaky + chance.random() * 0.1, {"m:leaky": leaky, "m:busy": chance.randint(1, 50)}))
    found = ran_meanwhile(steps)
    assert found[0].name == "m:leaky"
    assert found[0].share > 0.9


def test_what_did_not_run_is_not_blamed():
    steps = [(1.0, {"m:leaky": 1}), (0.0, {"m:innocent": 9})] * 20
    assert [suspect.name for suspect in ran_meanwhile(steps)] == ["m:leaky"]
    assert ran_meanwhile([(0.0, {"m:f": 1})] * 9) == []
    assert ran_meanwhile([]) == []


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("celery-task-meta-2b9d7a52-6d2e-4a64-8f2a-9f6f1f3f9b01", "celery-task-meta-*"),
        ("session:12345:user:77", "session:*:user:*"),
        ("2b9d7a52-6d2e-4a64-8f2a-9f6f1f3f9b01.reply.celery.pidbox", "*.reply.celery.pidbox"),
        ("plain", "plain"),
    ],
)
def test_keys_of_one_family_have_one_name(key, expected):
    assert family(key) == expected


def test_a_process_that_leaks_is_named_with_its_evidence_and_its_callable():
    taken = [
        Sample(
            at=TICK * tick, worker="cpu@here", pid=7, born=0.0, role="pool", files=3 + 2 * tick, ran={"m:opens": 2},
            evidence={"files": [["/tmp/spool/*", 2 * tick]]},
        )
        for tick in range(30)
    ]  # fmt: skip
    (found,) = findings.of_process(taken, hold=300)
    assert (found.verdict, found.measure, found.names) == ("leaking", "files", ("m:opens",))
    for part in ("/tmp/spool/*", "m:opens", "3 -> 61 files"):
        assert part in found.detail
    assert found.low > 0
    assert found.per_hour == pytest.approx(240)


def test_a_family_of_keys_that_grows_is_named():
    taken = [
        RedisSample(TICK * tick, {"keys cart:*": 40.0 * tick, "channels": 3.0}, {"m:shops": 5}) for tick in range(30)
    ]
    (found,) = findings.of_redis(taken)
    assert (found.measure, found.verdict, found.names) == ("keys cart:*", "leaking", ("m:shops",))


def test_keys_that_expire_and_queues_are_no_leak(redis_stack):
    # A database of its own: workers of other tests read the queues of the usual one.
    with redis_py.Redis.from_url(redis_stack.redis.url.removesuffix("/0") + "/15", client_name="graft-tests") as redis:
        redis.flushdb()
        for number in range(30):
            redis.set(f"leaktest:{number}", 1, ex=60)
        redis.lpush("heavy\x06\x169", *range(50))
        for number in range(30):
            redis.set(f"leaktest:forever:{number}", 1)
        redis.rpush("leaktest:list", *range(70))
        values = keyspace.sample(redis, 0.0, {}).values
        assert "keys leaktest:*" not in values
        assert values["keys leaktest:forever:*"] == 30
        assert values["elements leaktest:list"] == 70
        assert not [name for name in values if "heavy" in name]
        assert values["connections graft-tests"] >= 1
        redis.flushdb()


def test_a_connection_that_is_held_too_long_is_named(monkeypatch):
    import asyncio

    from graft.compat.async_worker_optimization import ConnectionPoolOptimizer

    async def borrow() -> None:
        pool = await ConnectionPoolOptimizer().create_pool(1, 2, object)
        connection = await pool.acquire("the nightly import")
        await asyncio.sleep(0.02)
        (held,) = [loan for loan in borrowed_connections.held(longer_than=0.01) if loan[0] == "the nightly import"]
        assert held[1] >= 0.01
        pool.release(connection)
        assert not [loan for loan in borrowed_connections.held(longer_than=0.0) if loan[0] == "the nightly import"]

    asyncio.run(borrow())
    sample = Sample(at=1.0, worker="w", pid=1, born=0.0, role="pool", held=[["the nightly import", 700.0]])
    (found,) = findings.of_process([sample], hold=300)
    assert (found.verdict, found.names) == ("leaking", ("the nightly import",))


def test_counting_what_is_tracked_leaves_tuples_in_the_making_alone():
    """With gc.get_objects() in Python, ``tuple`` raises SystemError at once."""
    done = threading.Event()

    def slowly():
        for number in range(20):
            time.sleep(0)
            yield number

    def count():
        while not done.is_set():
            assert gc_types.types()

    counter = threading.Thread(target=count)
    counter.start()
    try:
        assert {len(tuple(slowly())) for _ in range(20)} == {20}
    finally:
        done.set()
        counter.join()
