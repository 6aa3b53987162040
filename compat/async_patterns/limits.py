"""Semaphore and connection pool: in this process, or by ``name=`` for the whole cluster."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

from graft.compat.async_patterns import polling
from graft.compat.async_patterns.fair_semaphore import Turns
from graft.compat.placement import is_local
from graft.tasks.ids import new_id
from graft.tasks.shared.lease_renewer import lease_renewer
from graft.tasks.shared.semaphore import LEASE, SharedSemaphore

PATIENCE = 10.0  # A waiter unheard of for so long has died.

T = TypeVar("T", bound="Permit")


class Permit:
    """A place under a limit. ``id`` is its number, from 1 to the limit, unique among those held.

    ``async with`` gives it back, and so do :meth:`release` and forgetting it; a second time changes nothing.
    """

    def __init__(self, number: int, give_back: Callable[[], None], *, blocks: bool = False) -> None:
        self.id = number
        self._give_back: Callable[[], None] | None = give_back
        self._blocks = blocks

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}{'' if self._give_back else ', given back'}>"

    def release(self) -> None:
        """Give it back; of a named limit, without waiting for Redis to hear of it."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            polling.soon(give_back) if self._blocks else give_back()

    def __del__(self) -> None:
        if self._give_back is not None:
            polling.soon(self._give_back)  # On a thread: the collector may be at work under the very lock it takes.

    async def __aenter__(self) -> Permit:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.give_back()

    async def give_back(self) -> None:
        """The same, and Redis has heard of it."""
        if self._blocks and self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            await polling.tell(give_back)
        self.release()


class Connection(Permit):
    """What a ConnectionPool lends."""


class Acquiring(Generic[T]):
    """A permit about to be had: ``async with pool.acquire() as permit``, or ``permit = await pool.acquire()``."""

    def __init__(self, take: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._take = take
        self._permit: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._take().__await__()

    async def __aenter__(self) -> T:
        self._permit = await self._take()
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._permit is not None:
            await self._permit.give_back()


class _Limit(Generic[T]):
    """What a semaphore and a connection pool have in common."""

    def __init__(self, limit: int, name: str | None, lease: float, kind: str, permit: type[T]) -> None:
        self._turns = Turns(limit)
        self._numbers = list(range(1, limit + 1))  # A heap; turns keep it from running empty.
        self._lock = threading.Lock()
        self._permit = permit
        self.name = name
        self.shared = None
        if name is not None and not is_local():
            self.shared = SharedSemaphore(name, limit, lease, kind=kind)

    def acquire(self) -> Acquiring[T]:
        """Wait for a permit, first come, first served.

        Raises:
            BrokerUnavailable: with a name, Redis does not answer.
            DifferentLimitsError: another process uses the name with another limit.
        """
        return Acquiring(self._take if self.shared is None else self._take_shared)

    def _free(self) -> int:
        return self._turns.free if self.shared is None else self.shared.available()

    async def _take(self) -> T:
        await self._turns.take()
        with self._lock:
            number = heapq.heappop(self._numbers)

        def give_back() -> None:
            with self._lock:
                heapq.heappush(self._numbers, number)
            self._turns.give_back()

        return self._permit(number, give_back)

    async def _take_shared(self) -> T:
        shared, ticket = self.shared, new_id()
        assert shared is not None
        turn = _SharedTurn(shared, ticket)
        try:
            number = await polling.poll(turn.look, turn.pause)
        except BaseException:
            turn.abandon()
            raise
        lease_renewer().keep(ticket, lambda: shared.renew(ticket), shared.lease / 3)

        def give_back() -> None:
            lease_renewer().drop(ticket)
            shared.release(ticket)

        return self._permit(number, give_back, blocks=True)


class _SharedTurn:
    """One waiter for a shared permit; it may go away while a thread of its is still asking."""

    def __init__(self, shared: SharedSemaphore, ticket: str) -> None:
        self._shared = shared
        self._ticket = ticket
        self._ahead = 1
        self._lock = threading.Lock()
        self._is_abandoned = False

    def look(self) -> int | None:
        with self._lock:
            if self._is_abandoned:
                return None
            answer = self._shared.acquire(self._ticket, PATIENCE)
            self._ahead = answer.ahead
            return answer.slot or None

    def pause(self, looks: int) -> float:
        """The first in line looks every 20 ms; those behind it look less often, so that a long line costs little."""
        return min(0.02 * self._ahead, 0.5)

    def abandon(self) -> None:
        def leave() -> None:
            with self._lock:
                self._is_abandoned = True
                self._shared.release(self._ticket)

        polling.soon(leave)


class Semaphore(_Limit[Permit]):
    """At most *permits* at once, first come, first served.

    ``async with semaphore.acquire():`` and ``async with semaphore:`` both give the permit back when left, on errors,
    too.

    Args:
        permits: at least 1.
        name: for all processes that use this name with the same number. Permits are leases then: renewed while held,
            whatever the event loop does, and free again *lease* seconds after their holder was killed. In local mode a
            name has no effect.
        lease: seconds, of a named one.

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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.popleft().give_back()  # One is as good as another.


class ConnectionPool(_Limit[Connection]):
    """Lends at most *max_connections* connections, each with an ``id`` from 1 on, the lowest free one first.

    *name* and *lease* as for :class:`Semaphore`; ids are then unique in the whole cluster.

    Source: the chapter's ``ConnectionPool``. Difference: there, two connections in use could have the same id.
    """

    def __init__(self, max_connections: int, *, name: str | None = None, lease: float = LEASE) -> None:
        super().__init__(max_connections, name, lease, "pool", Connection)

    def available(self) -> int:
        """Connections that nobody holds; with a name, blocks for a round trip."""
        return self._free()
