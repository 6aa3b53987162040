"""Bounded channels: inside this process, or by ``name=`` as a list in Redis."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

from graft.compat.async_patterns.channel_ends import END, ChannelClosedError, Ends, LocalEnds, SharedEnd
from graft.compat.placement import is_local
from graft.config.validation import at_least_one
from graft.tasks.shared.channel import LEASE, SharedChannel


class Sender:
    """The sending end. Leaving ``async with``, closing or forgetting the last clone closes the channel."""

    def __init__(self, ends: Ends, count: _Count | None = None) -> None:
        self._ends = ends
        self._count = count or _Count()
        self._count.add()
        self._is_open = True
        self.waits = 0
        """Sends that had to wait for room."""

    async def send(self, value: Any) -> None:
        """Put *value* in; waits while the channel is full.

        Raises:
            ChannelClosedError: the receiver has gone, or this sender was closed.
        """
        if not self._is_open:
            raise ChannelClosedError("this sender was closed")
        if await self._ends.send(value):
            self.waits += 1

    def capacity(self) -> int:
        """The free room; with a name, blocks for a round trip."""
        return self._ends.room()

    def clone(self) -> Sender:
        """Another sender; the channel stays open until all are closed."""
        return Sender(self._ends, self._count)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            if self._count.drop() == 0:
                self._ends.sender_closed()

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Receiver(AsyncIterator[Any]):
    """The receiving end, also an async iterator. Closing or forgetting it makes senders fail."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._is_open = True

    async def recv(self, end: Any = None) -> Any:
        """The next value; *end* once all senders are closed and nothing is left."""
        value = await self._ends.receive() if self._is_open else END
        return end if value is END else value

    async def __anext__(self) -> Any:
        value = await self.recv(END)
        if value is END:
            raise StopAsyncIteration
        return value

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._ends.receiver_closed()

    async def __aenter__(self) -> Receiver:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def channel(capacity: int, *, name: str | None = None, lease: float = LEASE) -> tuple[Sender, Receiver]:
    """A sender and a receiver of a channel that holds at most *capacity* values.

    Args:
        capacity: at least 1.
        name: the channel of this name in Redis: each process calls this, uses the end it needs and closes the other,
            or never uses it. Ends count from their first use; one that was killed is gone after *lease* seconds. Values
            must pickle. In local mode a name has no effect.
        lease: seconds, of a named one.
    """
    at_least_one("capacity", capacity)
    if name is None or is_local():
        local = LocalEnds(capacity)
        return Sender(local), Receiver(local)
    shared = SharedChannel(name, capacity, lease)
    return Sender(SharedEnd(shared)), Receiver(SharedEnd(shared))


class _Count:
    """How many clones of a sender are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    def add(self) -> None:
        with self._lock:
            self._open += 1

    def drop(self) -> int:
        with self._lock:
            self._open -= 1
            return self._open
