"""The rate limiter: in this process, or by ``name=`` for the whole cluster."""

from __future__ import annotations

import asyncio
import time

from graft.compat.async_patterns import polling
from graft.compat.fair_semaphore import FairSemaphore
from graft.compat.placement import shared_name
from graft.tasks import blocking_threads
from graft.tasks.ids import new_id
from graft.tasks.shared.rate_limiter import Bucket, SharedRateLimiter


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
