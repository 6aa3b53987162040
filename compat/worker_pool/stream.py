"""The pool's one stream of results, for threads and coroutines."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.mailbox import pop
from graft.compat.worker_pool.pool_client import PoolClient
from graft.tasks.pools.state import RedisPool, redis_or_error

LOOK_EVERY: Final = 0.1


class ResultStream:
    """Results in order of completion, each delivered once, whoever reads; the iteration ends with the pool.

    What a process that uses a shared pool ran in threads of its own is delivered in that process.
    """

    def __init__(self, client: PoolClient) -> None:
        self._client = client

    def get(self, timeout: float | None = None) -> Result:
        """The next result; waits for it, up to *timeout* seconds if given.

        Raises:
            queue.Empty: there was none in time.
            PoolClosedError: the pool is down, and everything has been delivered.
        """
        result = self._next(timeout)
        if result is None:
            raise PoolClosedError
        return result

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        result = self._next(None)
        if result is None:
            raise StopIteration
        return result

    def __aiter__(self) -> AsyncIterator[Result]:
        return self

    async def __anext__(self) -> Result:
        client = self._client
        while True:
            mailbox = client.mailbox
            if (result := mailbox.take()) is not None:
                return result
            # One thread at most reads for all coroutines; it puts what it finds where a cancelled one loses nothing.
            if not await asyncio.to_thread(self._read, LOOK_EVERY):
                await asyncio.sleep(0.01)
            elif (result := mailbox.take()) is not None:
                return result
            elif await asyncio.to_thread(self._is_over):
                if (result := client.mailbox.take()) is not None:
                    return result
                raise StopAsyncIteration

    def _read(self, seconds: float) -> bool:
        """Have results in the mailbox, waiting up to *seconds* for the first; False when somebody else is reading."""
        client, mailbox = self._client, self._client.mailbox
        if not mailbox.reading.acquire(blocking=False):
            return False
        try:
            pool = client.open()
            if client.is_alone or not isinstance(pool, RedisPool):
                mailbox.wait(seconds)
                return True
            is_awaited_elsewhere = client.threads.was_used or client.is_private
            with redis_or_error():
                results = pop(pool.results_key, min(seconds, 0.02) if is_awaited_elsewhere else seconds)
            if results:
                mailbox.put(*results)
                client.submission.note_room(is_much=False)
        finally:
            mailbox.reading.release()
        return True

    def _is_over(self) -> bool:
        """Whether no result will come any more: the pool is down, and all it left has been read."""
        client = self._client
        if client.threads.is_running or client.status().state not in ("closed", "gone"):
            return False
        client.finish()
        self._read(0.0)
        return True

    def _next(self, timeout: float | None) -> Result | None:
        client = self._client
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if (result := client.mailbox.take()) is not None:
                return result
            left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, max(0.0, deadline - time.monotonic()))
            if not self._read(left):
                client.mailbox.wait(left)
            if (result := client.mailbox.take()) is not None:
                return result
            if self._is_over():
                return client.mailbox.take()
            if deadline is not None and time.monotonic() >= deadline:
                raise queue.Empty
