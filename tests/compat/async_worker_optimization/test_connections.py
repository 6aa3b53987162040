"""A.7, A.8, A.12: ConnectionPoolOptimizer, ConnectionPool, MockConnection."""

from __future__ import annotations

import asyncio
import gc
from fractions import Fraction
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.compat.async_worker_optimization import ConnectionPool, ConnectionPoolOptimizer, MockConnection
from graft.compat.async_worker_optimization.connections import Loan
from tests.stack import wait_until


class Connection:
    """Numbered in the order of making; remembers whether it was closed."""

    def __init__(self, number=0, alive=True):
        self.number = number
        self.alive = alive
        self.closed = False

    async def is_alive(self):
        return self.alive

    async def close(self):
        self.closed = True


class Factory:
    def __init__(self, fail_at=None):
        self.made = []
        self.fail_at = fail_at

    async def __call__(self):
        if len(self.made) == self.fail_at:
            raise OSError("refused")
        self.made.append(Connection(len(self.made)))
        return self.made[-1]


def test_a_created_pool_has_its_connections_made():
    factory = Factory()
    pool = asyncio.run(ConnectionPoolOptimizer().create_pool(3, 10, factory))
    assert type(pool) is ConnectionPool
    assert pool.connections == factory.made
    assert (pool.size, pool.min_size, pool.max_size, pool.connection_factory) == (3, 3, 10, factory)


def test_the_size_is_that_of_the_last_initialization():
    pool = ConnectionPool(2, 1, Factory())
    assert (pool.size, pool.connections) == (0, [])
    asyncio.run(pool.initialize())
    pool.connections.pop()
    assert pool.size == 2
    asyncio.run(pool.initialize())
    assert (pool.size, len(pool.connections)) == (2, 3)
    with pytest.raises(AttributeError):
        pool.size = 3


def test_a_factory_may_be_a_plain_function():
    pool = asyncio.run(ConnectionPoolOptimizer().create_pool(1, 1, lambda: "plain"))
    assert pool.connections == ["plain"]


def test_a_factory_that_fails_costs_no_open_connection():
    factory = Factory(fail_at=2)
    with pytest.raises(OSError, match="refused"):
        asyncio.run(ConnectionPoolOptimizer().create_pool(3, 3, factory))
    assert [connection.closed for connection in factory.made] == [True, True]


def test_a_connection_that_cannot_be_closed_hides_no_error():
    def connections():
        yield object()
        broken = SimpleNamespace()
        broken.close = lambda: 1 / 0
        yield broken
        raise OSError("refused")

    making = connections()
    with pytest.raises(OSError, match="refused"):
        asyncio.run(ConnectionPoolOptimizer().create_pool(3, 3, lambda: next(making)))


def sized(low=0, high=10**9):
    return SimpleNamespace(min_size=low, max_size=high)


def pattern(*active):
    return [{"active_connections": count} for count in active]


@pytest.mark.parametrize(
    ("active", "low", "high", "size"),
    [
        ((), 4, 2, 4),
        ((6,), 0, 99, 5),
        ((3,), 0, 99, 2),
        ((12,), 0, 99, 11),
        ((23,), 0, 99, 22),
        ((24,), 0, 99, 23),
        ((29,), 0, 99, 28),
        ((10,), 0, 99, 10),
        ((100, *[10] * 10), 0, 99, 37),
        ((50,), 0, 20, 20),
        ((1,), 5, 20, 5),
        ((50,), 30, 20, 30),
    ],
)
def test_a_pools_size_follows_its_load(active, low, high, size):
    assert ConnectionPoolOptimizer().optimize_pool_size(pattern(*active), sized(low, high)) == size


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_a_pools_size_is_the_formula_cut_to_the_last_bit(active):
    recent = active[-10:]
    size = ConnectionPoolOptimizer().optimize_pool_size(pattern(*active), sized())
    assert size == int(0.7 * (sum(recent) / len(recent)) + 0.3 * max(active))
    exact = Fraction(7, 10) * Fraction(sum(recent), len(recent)) + Fraction(3, 10) * max(active)
    assert abs(size - exact) <= 1
    rounded = ConnectionPoolOptimizer().optimize_pool_size(pattern(*active), sized(), rounding=round)
    assert abs(rounded - exact) <= Fraction(1, 2) + Fraction(1, 10**9)


def test_an_incomplete_pattern_is_refused():
    with pytest.raises(KeyError, match="active_connections"):
        ConnectionPoolOptimizer().optimize_pool_size([{}, *pattern(1)], sized())


@pytest.mark.parametrize("method", ["monitor_pool_health", "monitor_health"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_health_counts_who_is_alive(method, at_once):
    pool = SimpleNamespace(connections=[MockConnection(), MockConnection(False), MockConnection(True), Connection()])
    health = asyncio.run(getattr(ConnectionPoolOptimizer(), method)(pool, at_once=at_once))
    assert health == {
        "total_connections": 4, "healthy_connections": 3, "unhealthy_connections": 1, "health_percentage": 75.0,
    }  # fmt: skip


def test_a_pool_without_connections_has_no_health():
    health = asyncio.run(ConnectionPoolOptimizer().monitor_pool_health(SimpleNamespace(connections=[])))
    assert list(health.values()) == [0, 0, 0, 0]


@pytest.mark.parametrize(("at_once", "together"), [(1, 1), (3, 3)])
def test_connections_are_asked_one_after_the_other_unless_told(at_once, together):
    asked = []

    class Slow:
        running = 0

        async def is_alive(self):
            Slow.running += 1
            asked.append(Slow.running)
            await asyncio.sleep(0.001)
            Slow.running -= 1
            return True

    pool = SimpleNamespace(connections=[Slow() for _ in range(9)])
    asyncio.run(ConnectionPoolOptimizer().monitor_pool_health(pool, at_once=at_once))
    assert max(asked) == together
    assert len(asked) == 9


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_of_is_alive_passes(at_once):
    class Broken:
        async def is_alive(self):
            raise OSError("reset")

    pool = SimpleNamespace(connections=[MockConnection(), Broken(), MockConnection()])
    with pytest.raises(OSError, match="reset"):
        asyncio.run(ConnectionPoolOptimizer().monitor_pool_health(pool, at_once=at_once))


def test_health_can_be_kept_for_other_processes(redis):
    pool = SimpleNamespace(connections=[MockConnection(), MockConnection(False)])
    health = asyncio.run(ConnectionPoolOptimizer().monitor_pool_health(pool, record_as="database"))
    kept = ConnectionPoolOptimizer().recorded_health("database")
    assert kept.pop("measured_at") > 1e9
    assert kept == health
    assert ConnectionPoolOptimizer().recorded_health("never measured") == {}


def test_loans_never_exceed_the_maximum_and_are_served_in_turn():
    factory = Factory()
    pool = ConnectionPool(1, 2, factory)
    served = []
    most = 0

    async def borrow(number):
        nonlocal most
        async with pool.acquire() as connection:
            served.append(number)
            most = max(most, len(pool.loans))
            assert connection in factory.made
            await asyncio.sleep(0)

    async def main():
        await pool.initialize()
        await asyncio.gather(*(borrow(number) for number in range(20)))

    asyncio.run(main())
    assert served == list(range(20))
    assert most == 2 == len(factory.made)
    assert pool.loans == []


def test_a_connection_can_be_awaited_and_given_back_either_way():
    pool = ConnectionPool(0, 1, Factory())

    async def main():
        connection = await pool.acquire()
        assert [loan.connection for loan in pool.loans] == [connection]
        await pool.release(connection)
        assert await pool.acquire() is connection
        pool.release(connection)
        with pytest.raises(ValueError, match="not on loan"):
            pool.release(connection)
        with pytest.raises(OSError, match="inside"):
            async with pool.acquire():
                raise OSError("inside")

    asyncio.run(main())
    assert pool.loans == []


def test_whoever_gives_up_waiting_costs_nobody_a_turn():
    pool = ConnectionPool(0, 1, Factory())

    async def main():
        held = await pool.acquire()
        impatient = asyncio.ensure_future(_acquire(pool))
        patient = asyncio.ensure_future(_acquire(pool))
        await asyncio.sleep(0)
        pool.release(held)
        impatient.cancel()  # Its turn has come already, unseen.
        assert await asyncio.wait_for(patient, 5) is held

    asyncio.run(main())


async def _acquire(pool):
    return await pool.acquire()


def test_a_factory_that_fails_gives_its_place_back():
    pool = ConnectionPool(0, 1, Factory(fail_at=0))

    async def main():
        for _ in range(3):
            with pytest.raises(OSError, match="refused"):
                await pool.acquire()

    asyncio.run(main())


def test_a_pool_serves_one_event_loop_after_the_other():
    pool = ConnectionPool(0, 1, Factory())
    held = asyncio.run(_acquire(pool))

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_acquire(pool), 0.01)

    asyncio.run(give_up())
    loop = asyncio.new_event_loop()
    abandoned = loop.create_task(_acquire(pool))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    pool.release(held)
    assert asyncio.run(_acquire(pool)) is held
    abandoned._log_destroy_pending = False


def test_a_pool_of_nothing_lends_nothing():
    with pytest.raises(ValueError, match="max_size=0"):
        asyncio.run(_acquire(ConnectionPool(0, 0, Factory())))


@pytest.mark.parametrize(
    ("held", "severity"),
    [(0.0, None), (300.0, None), (300.5, "medium"), (600.0, "medium"), (600.5, "high")],
)
def test_a_loan_is_a_leak_beyond_the_limit_and_severe_beyond_twice_that(held, severity):
    leak = Loan("the connection", "the importer", since=1000.0).as_leak(1000.0 + held, 300.0)
    assert leak == (
        severity
        and {
            "location": "the importer",
            "type": "long_held_connection",
            "held_seconds": held,
            "severity": severity,
            "connection": "the connection",
        }
    )


def test_long_loans_are_reported_oldest_first():
    optimizer = ConnectionPoolOptimizer()

    async def borrow():
        first = await optimizer.create_pool(0, 5, Factory())
        second = await optimizer.create_pool(0, 5, Factory())
        loans = [await first.acquire("the importer"), await second.acquire()]
        returned = await first.acquire()
        first.release(returned)
        loans.append(await first.acquire())
        return first, second, loans

    first, second, loans = asyncio.run(borrow())

    def found(pool=None):
        return optimizer.detect_leaks(pool, max_hold_seconds=0.01)

    wait_until(lambda: [leak["severity"] for leak in found()] == ["high"] * 3, what="three long loans")
    leaks = found()
    assert [leak["connection"] for leak in leaks] == loans
    assert leaks[0]["held_seconds"] > leaks[1]["held_seconds"] > leaks[2]["held_seconds"] > 0.02
    assert leaks[0]["location"] == "the importer"
    assert __file__ in leaks[1]["location"]
    assert "borrow" in leaks[1]["location"]
    assert [leak["connection"] for leak in found(first)] == [loans[0], loans[2]]
    assert [leak["connection"] for leak in found(second)] == [loans[1]]
    assert optimizer.detect_leaks(max_hold_seconds=3600.0) == []
    assert ConnectionPoolOptimizer().detect_leaks(max_hold_seconds=0.01) == []
    assert found(SimpleNamespace(connections=[])) == []


def test_an_optimizer_keeps_no_pool_alive():
    optimizer = ConnectionPoolOptimizer()
    pool = asyncio.run(optimizer.create_pool(0, 1, Factory()))
    asyncio.run(_acquire(pool))
    del pool
    gc.collect()
    assert optimizer.detect_leaks(max_hold_seconds=-1) == []
