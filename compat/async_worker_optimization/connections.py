"""Pools of connections in this process. Connections cannot travel, so the factory always runs here."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakSet

from graft.compat.async_worker_optimization import redis_records
from graft.compat.fair_semaphore import Acquiring, FairSemaphore
from graft.compat.local import awaited
from graft.tasks.leaks import borrowed_connections

HEALTH: Final = f"{redis_records.PREFIX}pool_health:"

logger = logging.getLogger("graft.compat.async_worker_optimization")


class _Sized(Protocol):
    min_size: int
    max_size: int


class _Connected(Protocol):
    @property
    def connections(self) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Loan:
    """A lent connection. ``since`` is on the monotonic clock."""

    connection: Any
    location: str
    since: float

    def as_leak(self, now: float, max_hold_seconds: float) -> dict[str, Any] | None:
        """The report on a loan held longer than *max_hold_seconds*, else None; "high" beyond twice as long."""
        held = now - self.since
        if held <= max_hold_seconds:
            return None
        return {
            "location": self.location,
            "type": "long_held_connection",
            "held_seconds": held,
            "severity": "high" if held > 2 * max_hold_seconds else "medium",
            "connection": self.connection,
        }


class Released:
    """The answer of a ``release()``, for callers who await it."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class ConnectionPool:
    """Connections made in advance, and on request lent out.

    Source: ``async_worker_optimization.ConnectionPool``. Differences: the factory may be a plain function; connections
    made before a failing factory call are closed; :meth:`acquire` and :meth:`release`, never more than *max_size* lent.
    """

    def __init__(self, min_size: int, max_size: int, connection_factory: Callable[[], Any]) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.connection_factory = connection_factory
        self.connections: list[Any] = []
        self._size = 0
        self._loans: dict[int, Loan] = {}
        self._lent = FairSemaphore(max(1, max_size))
        _pools.add(self)

    @property
    def size(self) -> int:
        """0 before :meth:`initialize`, ``min_size`` afterwards, whatever becomes of ``connections``."""
        return self._size

    @property
    def loans(self) -> list[Loan]:
        """Connections that are lent now, the oldest loan first."""
        return list(self._loans.values())

    async def initialize(self) -> None:
        """Make ``min_size`` connections, one after the other; a second call makes as many again."""
        made: list[Any] = []
        try:
            for _ in range(self.min_size):
                made.append(await awaited(self.connection_factory()))
                self.connections.append(made[-1])
        except BaseException:
            self.connections[:] = [each for each in self.connections if all(each is not one for one in made)]
            for connection in made:
                await _close(connection)
            raise
        self._size = self.min_size

    def acquire(self, holder: str | None = None) -> Acquiring[Any]:
        """Borrow a connection: ``async with pool.acquire() as connection``, or ``await`` it and ``release`` it later.

        An idle one, else a new one while fewer than ``max_size`` are lent; else the first released one, in the order of
        asking. *holder* names the borrower in reports of leaks. Default: the calling line.
        """
        frame = sys._getframe(1)
        location = holder or f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        return Acquiring(lambda: self._lend(location), self.release)

    def release(self, connection: Any) -> Released:
        """Give *connection* back; awaiting the result is allowed and does nothing.

        Raises:
            ValueError: *connection* is not lent by this pool, or was given back before.
        """
        if self._loans.pop(id(connection), None) is None:
            raise ValueError(f"{connection!r} is not on loan from this pool")
        self._lent.release()
        return Released()

    async def _lend(self, location: str) -> Any:
        if self.max_size < 1:
            raise ValueError(f"max_size={self.max_size} allows no loan; it must be at least 1")
        self._lent.limit = self.max_size
        await self._lent.acquire()
        try:
            connection = next((each for each in self.connections if id(each) not in self._loans), None)
            if connection is None:
                connection = await awaited(self.connection_factory())
                self.connections.append(connection)
        except BaseException:
            self._lent.release()
            raise
        self._loans[id(connection)] = Loan(connection, location, time.monotonic())
        return connection


_pools: WeakSet[ConnectionPool] = WeakSet()


def _lent() -> Iterable[tuple[str, float]]:
    """Location and seconds of each loan of this process, for the leak checks."""
    now = time.monotonic()
    return [(loan.location, now - loan.since) for pool in list(_pools) for loan in pool.loans]


borrowed_connections.add_source(_lent)


class ConnectionPoolOptimizer:
    """Source: ``async_worker_optimization.ConnectionPoolOptimizer``."""

    def __init__(self) -> None:
        self._pools: WeakSet[ConnectionPool] = WeakSet()

    async def create_pool(self, min_size: int, max_size: int, connection_factory: Callable[[], Any]) -> ConnectionPool:
        """A pool with ``min_size`` connections made. An error of the factory rises, after those made were closed."""
        pool = ConnectionPool(min_size, max_size, connection_factory)
        await pool.initialize()
        self._pools.add(pool)
        return pool

    def optimize_pool_size(
        self,
        load_pattern: Sequence[Mapping[str, float]],
        pool: _Sized,
        *,
        rounding: Callable[[float], int] = int,
    ) -> int:
        """A size for *pool* by its load: 0.7 x mean of the last 10 + 0.3 x maximum of all ``active_connections``.

        The figure is cut to an integer, as in the legacy module, so a flat load of 6 gives 5; ``rounding=round`` gives
        6. It is at most ``max_size``, then at least ``min_size``; an empty pattern gives ``min_size``. The pool is not
        resized.
        """
        if not load_pattern:
            return pool.min_size
        active = [entry["active_connections"] for entry in load_pattern]
        recent = active[-10:]
        wanted = rounding(0.7 * (sum(recent) / len(recent)) + 0.3 * max(active))
        return max(pool.min_size, min(pool.max_size, wanted))

    async def monitor_pool_health(
        self, pool: _Connected, *, at_once: int = 1, record_as: str | None = None
    ) -> dict[str, Any]:
        """Ask every connection ``is_alive()``: totals, and ``health_percentage`` from 0 to 100, 0 without any.

        Args:
            pool: any object with ``connections``.
            at_once: connections asked at the same time. Default: one after the other.
            record_as: also keep the figures in Redis under this name, for :meth:`recorded_health`.

        Raises:
            Exception: whatever ``is_alive`` raises.
        """
        if at_once < 1:
            raise ValueError(f"at_once={at_once} must be at least 1")
        connections = list(pool.connections)
        healthy = sum(await _alive(connections, at_once))
        total = len(connections)
        health = {
            "total_connections": total,
            "healthy_connections": healthy,
            "unhealthy_connections": total - healthy,
            "health_percentage": healthy / total * 100 if total else 0,
        }
        if record_as is not None:
            redis_records.keep(HEALTH + record_as, {**health, "measured_at": time.time()})
        return health

    monitor_health = monitor_pool_health

    def recorded_health(self, name: str) -> dict[str, float]:
        """The figures last kept under *name*, by any process, with ``measured_at`` in seconds since the epoch.

        {} when there are none. Blocks for one round trip.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        return {field: float(value) for field, value in redis_records.read(HEALTH + name).items()}

    def detect_leaks(self, pool: ConnectionPool | None = None, max_hold_seconds: float = 300.0) -> list[dict[str, Any]]:
        """Connections held for longer than *max_hold_seconds*, the longest first. Default: of every pool made here.

        ``location`` is the holder, or the line that took it; ``severity`` is "high" beyond twice the limit.
        """
        pools: Iterable[Any] = self._pools if pool is None else [pool]
        now = time.monotonic()
        loans = sorted((loan for each in pools for loan in getattr(each, "loans", ())), key=lambda loan: loan.since)
        return [leak for loan in loans if (leak := loan.as_leak(now, max_hold_seconds)) is not None]


class MockConnection:
    """A connection with a flag that says whether it is alive. Source: ``async_worker_optimization.MockConnection``."""

    def __init__(self, alive: bool = True) -> None:
        self.alive = alive

    async def is_alive(self) -> bool:
        return self.alive


async def _alive(connections: Sequence[Any], at_once: int) -> list[bool]:
    waiting = iter(connections)

    async def ask() -> list[bool]:
        return [bool(await awaited(connection.is_alive())) for connection in waiting]

    askers = [asyncio.ensure_future(ask()) for _ in range(min(at_once, len(connections)))]
    try:
        return list(itertools.chain.from_iterable(await asyncio.gather(*askers)))
    finally:
        for asker in askers:
            asker.cancel()


async def _close(connection: Any) -> None:
    close = getattr(connection, "aclose", None) or getattr(connection, "close", None)
    try:
        if close is not None:
            await awaited(close())
    except Exception as error:
        logger.warning("%r could not be closed: %s", connection, error)
