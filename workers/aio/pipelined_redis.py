"""One connection to Redis for the results of all tasks on the loop: commands of one moment share a round trip.

Commands that are sent while the last ones are under way leave in one pipeline after them, so a thousand tasks that end
at once cost a few round trips. An outage is sat out here; tasks that wait take no thread and no turn of the loop.
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
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError

from graft.config.deployment import settings
from graft.config.redis_client import sentinels

logger = logging.getLogger(__name__)

MOST: Final = 2000  # Commands in one round trip.
REFUSALS: Final = ("-OOM ", "-READONLY ", "-MASTERDOWN ")
TIMEOUT: Final = 10.0  # Seconds for one round trip.
SLOWEST: Final = 1.0  # Seconds between two attempts at most.

Command = tuple[Any, ...]


class PipelinedRedis:
    """Sends commands in the order in which they come. Belongs to one loop."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._queue: deque[tuple[Sequence[Command], asyncio.Future[Any]]] = deque()
        self._client: redis.asyncio.Redis | None = None
        self._sender: asyncio.Task[None] | None = None

    async def send(self, *commands: Command) -> list[Any]:
        """The replies to *commands*, which leave together; the first error among them is raised.

        Raises:
            redis.ConnectionError: Redis was away for longer than *patience* seconds.
        """
        reply = asyncio.get_running_loop().create_future()
        self._queue.append((commands, reply))
        if self._sender is None or self._sender.done():
            # Belongs to no run: this task outlives the run that happens to be the first, so its context is new.
            loop = asyncio.get_running_loop()
            self._sender = asyncio.Task(self._send_all(), loop=loop, name="graft-io-results", context=Context())
        replies: list[Any] = await reply
        for each in replies:
            if isinstance(each, Exception):
                raise each
        return replies

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def _send_all(self) -> None:
        while self._queue:
            batch: list[tuple[Sequence[Command], asyncio.Future[Any]]] = []
            commands: list[Command] = []
            while self._queue and len(commands) < MOST:
                group, reply = self._queue.popleft()
                if not reply.done():  # The task that waited is gone.
                    batch.append((group, reply))
                    commands.extend(group)
            if not batch:
                continue
            try:
                replies = await self._exchange(commands)
            except Exception as error:
                for _, reply in batch:
                    if not reply.done():
                        reply.set_exception(error)
                continue
            at = 0
            for group, reply in batch:
                if not reply.done():
                    reply.set_result(replies[at : at + len(group)])
                at += len(group)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        deadline = time.monotonic() + self._patience
        wait = 0.05
        while True:
            if self._client is None:
                self._client = self._connect()
            error: Exception | None
            try:
                async with asyncio.timeout(TIMEOUT):
                    replies = await _pipelined(self._client, commands)
                error = next((reply for reply in replies if _is_passing(reply)), None)
                if error is None or time.monotonic() >= deadline:
                    return replies
                await self._client.connection_pool.disconnect()  # This server may no longer be the master.
            except (redis.ConnectionError, redis.TimeoutError, OSError) as lost:  # A TimeoutError is an OSError.
                if time.monotonic() >= deadline:
                    raise
                error = lost
            logger.warning(
                "results cannot be stored; tried again for up to %g s: %s: %s",
                self._patience, type(error).__name__, error,
            )  # fmt: skip
            await asyncio.sleep(wait)
            wait = min(wait * 2, SLOWEST)

    def _connect(self) -> Any:
        url = settings().backend_url.replace("redis+socket://", "unix://").replace("socket://", "unix://")
        options: dict[str, Any] = {
            "socket_timeout": None,  # Would be set up, and taken down, for each reply.
            "socket_connect_timeout": settings().connect_timeout,
            "socket_keepalive": True,
            "client_name": "graft-io-results",
            "max_connections": 2,
        }
        if url.startswith("sentinel://"):
            return _master(url, settings().sentinel_master, options)
        return redis.asyncio.Redis.from_url(url, **options)


def _master(urls: str, name: str, options: dict[str, Any]) -> Any:
    """A client of the server that Sentinel calls the master, found anew for every new connection."""
    hosts, master = sentinels(urls)
    connecting = {"socket_timeout": options["socket_connect_timeout"]}
    sentinel: Any = Sentinel  # redis-py's own types stop here.
    return sentinel(hosts, sentinel_kwargs=connecting).master_for(name, **master, **options)


def _is_passing(reply: Any) -> bool:
    """Whether *reply* is a refusal that is as good as an outage: Redis is full, or no longer the master.

    Before version 7, Redis has it in the text of a script's error.
    """
    if isinstance(reply, OutOfMemoryError | ReadOnlyError | MasterDownError):
        return True
    return isinstance(reply, redis.ResponseError) and any(word in str(reply) for word in REFUSALS)


async def _pipelined(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """One round trip; the reply to a command that failed is its error."""
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
        await connection.disconnect()  # Its next reply would belong to an earlier command.
        raise
    finally:
        await pool.release(connection)
