"""Semaphore, connection pool and rate limiter: in this process, or by ``name=`` for the whole cluster."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from graft.compat.async_patterns import polling
from graft.compat.fair_semaphore import Acquiring, FairSemaphore
from graft.compat.placement import shared_name
from graft.tasks import blocking_threads
from graft.tasks.ids import new_id
from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.rate_limiter import Bucket, SharedRateLimiter
from graft.tasks.shared.semaphore import LEASE, SharedSemaphore

PATIENCE = 10.0  # Seconds; a waiter that has not asked for so long has died.

T = TypeVar("T", bound="Permit")


class Permit:
    """One of a limited number of permits. ``id`` is from 1 to the limit, unique among those held.

    Leaving ``async with``, :meth:`release` and dropping the object give it back; a second time changes nothing.
    """

    def __init__(self, number: int, give_back: Callable[[], None], *, blocks: bool = False) -> None:
        self.id = number
        self._give_back: Callable[[], None] | None = give_back
        self._blocks = blocks

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{'' if self._give_back else ', given back'}>"

    def release(self) -> None:
        """Give it back; with a name, Redis is updated in the background."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            polling.soon(give_back) if self._blocks else give_back()

    def __del__(self) -> None:
        if self._give_back is not None:
            polling.soon(self._give_back)  # On a thread: the collector may run under the very lock that this takes.

    async def __aenter__(self) -> Permit:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.give_back()

    async def give_back(self) -> None:
        """Give it back, and wait until Redis has been updated."""
        if self._blocks and self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            await polling.write(give_back)
        self.release()


class Connection(Permit):
    """A connection that a ConnectionPool lends."""


class _Permits(Generic[T]):
    """The permits of a semaphore or a connection pool."""

    def __init__(self, limit: int, name: str | None, lease: float, kind: str, permit: type[T]) -> None:
        self._semaphore = FairSemaphore(limit)
        self._numbers = list(range(1, limit + 1))  # A heap; the semaphore keeps it from running empty.
        self._lock = threading.Lock()
        self._permit = permit
        self.name = name
        self.shared = SharedSemaphore(shared, limit, lease, kind=kind) if (shared := shared_name(name)) else None

    def acquire(self) -> Acquiring[T]:
        """Wait for a permit, first come, first served.

        Raises:
            BrokerUnavailable: with a name, Redis does not answer.
            DifferentLimitsError: another process uses the name with another limit.
        """
        return Acquiring(self._take if self.shared is None else self._take_shared, self._permit.give_back)

    def _free(self) -> int:
        return self._semaphore.free if self.shared is None else self.shared.available()

    async def _take(self) -> T:
        await self._semaphore.acquire()
        with self._lock:
            number = heapq.heappop(self._numbers)

        def give_back() -> None:
            with self._lock:
                heapq.heappush(self._numbers, number)
            self._semaphore.release()

        return self._permit(number, give_back)

    async def _take_shared(self) -> T:
        shared, ticket = self.shared, new_id()
        assert shared is not None
        waiter = _SharedWaiter(shared, ticket)
        try:
            number = await polling.poll(waiter.take, waiter.pause)
        except BaseException:
            polling.soon(waiter.leave)
            raise
        lease_renewer().keep(ticket, lambda: shared.renew(ticket), shared.lease / 3)

        def give_back() -> None:
            lease_renewer().drop(ticket)
            shared.release(ticket)

        return self._permit(number, give_back, blocks=True)


class _SharedWaiter:
    """A waiter for a shared permit; it may leave while one of its threads still asks."""

    def __init__(self, shared: SharedSemaphore, ticket: str) -> None:
        self._shared = shared
        self._ticket = ticket
        self._ahead = 1
        self._lock = threading.Lock()
        self._has_left = False

    def take(self) -> int | None:
        with self._lock:
            if self._has_left:
                return None
            answer = self._shared.acquire(self._ticket, PATIENCE)
            self._ahead = answer.ahead
            return answer.slot or None

    def pause(self, looks: int) -> float:
        """The first waiter asks every 20 ms; those behind it ask less often, so that many cost little."""
        return min(0.02 * self._ahead, 0.5)

    def leave(self) -> None:
        with self._lock:
            self._has_left = True
            self._shared.release(self._ticket)


class Semaphore(_Permits[Permit]):
    """At most *permits* at once, first come, first served.

    Leaving ``async with semaphore.acquire():`` or ``async with semaphore:`` gives the permit back, also on errors.

    Args:
        permits: at least 1.
        name: one semaphore for all processes that use this name with the same number. Permits are then leases: renewed
            while held, and free again *lease* seconds after their holder was killed. Ignored in local mode.
        lease: seconds; only with a name.

    Source: the chapter's ``Semaphore``.
    """

    def __init__(self, permits: int, *, name: str | None = None, lease: float = LEASE) -> None:
        super().__init__(permits, name, lease, "semaphore", Permit)
        self._entered: deque[Permit] = deque()

    def available_permits(self) -> int:
        """Permits that nobody holds; with a name, blocks for a round trip."""
        return self._free()

    async def __aenter__(self) -> Permit:
        permit = await self.acquire()
        self._entered.append(permit)
        return permit

    async def __aexit__(self, *exc_info: object) -> None:
        await self._entered.popleft().give_back()  # One is as good as another.


class ConnectionPool(_Permits[Connection]):
    """Lends at most *max_connections* connections, each with an ``id`` from 1 on, the lowest free one first.

    *name* and *lease* as for :class:`Semaphore`; ids are then unique in the whole cluster.

    Source: the chapter's ``ConnectionPool``. Difference: there, two connections in use could have the same id.
    """

    def __init__(self, max_connections: int, *, name: str | None = None, lease: float = LEASE) -> None:
        super().__init__(max_connections, name, lease, "pool", Connection)

    def available(self) -> int:
        """Connections that nobody holds; with a name, blocks for a round trip."""
        return self._free()


class RateLimiter:
    """A token bucket: holds at most *per_second* tokens, starts full, gains one each ``1 / per_second`` seconds.

    The first second may therefore see up to twice the rate. Tokens go to those who asked first.

    Args:
        per_second: at least 1.
        name: one bucket for all processes that use this name with the same rate, on Redis's clock. A waiter that is
            killed, or cancelled while others wait behind it, wastes its token. Ignored in local mode.

    Source: the chapter's ``RateLimiter``. Difference: no task refills it; it is computed from the clock.
    """

    def __init__(self, per_second: float, *, name: str | None = None) -> None:
        self.per_second = per_second
        self.name = name
        self._bucket = Bucket(per_second)
        self._full_at = 0.0
        self._first = FairSemaphore(1)
        self.shared = SharedRateLimiter(shared, per_second) if (shared := shared_name(name)) else None

    async def acquire(self) -> None:
        """Take one token; wait if there is none.

        Raises:
            BrokerUnavailable: with a name, Redis does not answer.
            DifferentLimitsError: another process uses the name with another rate.
        """
        if self.shared is None:
            await self._acquire_here()
        else:
            await self._acquire_shared(self.shared)

    async def _acquire_here(self) -> None:
        await self._first.acquire()  # Only the first waiter looks at the clock, so giving up costs no token.
        try:
            while True:
                now = time.monotonic()
                full_at, at = self._bucket.book(self._full_at, now)
                if at <= now:
                    break
                await asyncio.sleep(at - now)
            self._full_at = full_at
        finally:
            self._first.release()

    async def _acquire_shared(self, shared: SharedRateLimiter) -> None:
        ticket = new_id()
        booked = asyncio.ensure_future(blocking_threads.ask(shared.book, ticket))
        try:
            await asyncio.sleep(await asyncio.shield(booked))
        except asyncio.CancelledError:
            booked.add_done_callback(lambda done: _cancel(shared, ticket, done))
            raise


def _cancel(shared: SharedRateLimiter, ticket: str, booked: asyncio.Future[float]) -> None:
    if not booked.cancelled() and booked.exception() is None:
        polling.soon(shared.cancel, ticket)
