"""The pool's one stream of results, for threads and coroutines."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from typing import Final

from graft.compat.worker_pool.data import Result
from graft.compat.worker_pool.errors import PoolClosedError
from graft.compat.worker_pool.pool_client import PoolClient

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
            if not await asyncio.to_thread(client.read, LOOK_EVERY):
                await asyncio.sleep(0.01)
            elif (result := mailbox.take()) is not None:
                return result
            elif await asyncio.to_thread(client.is_over):
                if (result := client.mailbox.take()) is not None:
                    return result
                raise StopAsyncIteration

    def _next(self, timeout: float | None) -> Result | None:
        client = self._client
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if (result := client.mailbox.take()) is not None:
                return result
            left = LOOK_EVERY if deadline is None else min(LOOK_EVERY, max(0.0, deadline - time.monotonic()))
            if not client.read(left):
                client.mailbox.wait(left)
            if (result := client.mailbox.take()) is not None:
                return result
            if client.is_over():
                return client.mailbox.take()
            if deadline is not None and time.monotonic() >= deadline:
                raise queue.Empty
