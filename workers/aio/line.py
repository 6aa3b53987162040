"""One connection to Redis for the results of all tasks on the loop: what comes together travels together.

Commands that are sent while the last ones are under way leave in one pipeline after them, so a thousand tasks that end
at once cost a few round trips. An outage is sat out here; the tasks that wait take no thread and no turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Final

import redis
import redis.asyncio

from graft.config.settings import settings

logger = logging.getLogger(__name__)

MOST: Final = 2000  # Commands in one round trip.
SLOWEST: Final = 1.0  # Seconds between two attempts at most.

Command = tuple[Any, ...]


class Line:
    """Sends commands in the order in which they come. Belongs to one loop."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._queue: deque[tuple[Sequence[Command], asyncio.Future[Any]]] = deque()
        self._client: redis.asyncio.Redis | None = None
        self._sender: asyncio.Task[None] | None = None

    async def send(self, *commands: Command) -> list[Any]:
        """The replies to *commands*, which leave together; the first error among them is raised.

        Raises:
            redis.ConnectionError: Redis was away for longer than the patience of this line.
        """
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((commands, answer))
        if self._sender is None or self._sender.done():
            # No part of the run that happens to be the first: it outlives it, and has a context of its own.
            loop = asyncio.get_running_loop()
            self._sender = asyncio.Task(self._send_all(), loop=loop, name="graft-line", context=Context())
        replies: list[Any] = await answer
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _send_all(self) -> None:
        while self._queue:
            batch: list[tuple[Sequence[Command], asyncio.Future[Any]]] = []
            commands: list[Command] = []
            while self._queue and len(commands) < MOST:
                group, answer = self._queue.popleft()
                if not answer.done():  # Nobody waits for it any more.
                    batch.append((group, answer))
                    commands.extend(group)
            if not batch:
                continue
            try:
                replies = await self._exchange(commands)
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            at = 0
            for group, answer in batch:
                if not answer.done():
                    answer.set_result(replies[at : at + len(group)])
                at += len(group)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        deadline = time.monotonic() + self._patience
        wait = 0.05
        while True:
            if self._client is None:
                self._client = self._connect()
            try:
                return await _pipelined(self._client, commands)
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                if time.monotonic() >= deadline:
                    raise
                logger.warning("results cannot be stored, trying again: %s", error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, SLOWEST)

    def _connect(self) -> redis.asyncio.Redis:
        url = settings().backend_url.replace("redis+socket://", "unix://").replace("socket://", "unix://")
        return redis.asyncio.Redis.from_url(
            url,
            socket_timeout=10.0,
            socket_connect_timeout=settings().connect_timeout,
            socket_keepalive=True,
            client_name="graft-line",
            max_connections=2,
        )


async def _pipelined(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """One round trip; an error reply stands in the place of its command's."""
    pool = client.connection_pool
    connection: Any = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except redis.ResponseError as error:
                replies.append(error)
        return replies
    except BaseException:
        await connection.disconnect()  # Its next reply would be for somebody else.
        raise
    finally:
        await pool.release(connection)
