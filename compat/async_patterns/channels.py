"""Bounded channels: inside this process, or by ``name=`` as a list in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

from graft.compat.async_patterns.channel_ends import END, ChannelClosedError, Ends, LocalEnds, SharedEnd
from graft.compat.placement import shared_name
from graft.config.validation import at_least_one
from graft.tasks.shared.channel import LEASE, SharedChannel


class _End:
    """Either end: open until it is closed, left by ``async with``, or dropped."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._closed()

    def _closed(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Sender(_End):
    """The sending end. Leaving ``async with``, closing or dropping the last clone closes the channel."""

    def __init__(self, ends: Ends, open_clones: set[int] | None = None) -> None:
        super().__init__(ends)
        self._open_clones = set() if open_clones is None else open_clones
        self._open_clones.add(id(self))
        self.waits = 0
        """Sends that had to wait for room."""

    async def send(self, value: Any) -> None:
        """Put *value* in; waits while the channel is full.

        Raises:
            ChannelClosedError: the receiver or this sender is closed.
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
        return Sender(self._ends, self._open_clones)

    def _closed(self) -> None:
        self._open_clones.discard(id(self))
        if not self._open_clones:
            self._ends.sender_closed()


class Receiver(_End, AsyncIterator[Any]):
    """The receiving end, also an async iterator. Closing or dropping it makes senders fail."""

    async def recv(self, end: Any = None) -> Any:
        """The next value; *end* once all senders are closed and nothing is left."""
        value = await self._ends.receive() if self._is_open else END
        return end if value is END else value

    async def __anext__(self) -> Any:
        value = await self.recv(END)
        if value is END:
            raise StopAsyncIteration
        return value

    def _closed(self) -> None:
        self._ends.receiver_closed()


def channel(capacity: int, *, name: str | None = None, lease: float = LEASE) -> tuple[Sender, Receiver]:
    """A sender and a receiver of a channel that holds at most *capacity* values.

    Args:
        capacity: at least 1.
        name: the channel of this name in Redis: each process calls this, uses the end it needs and closes the other,
            or never uses it. An end counts from its first use, until *lease* seconds after its process was killed.
            Values must pickle. Ignored in local mode.
        lease: seconds; only with a name.
    """
    at_least_one("capacity", capacity)
    if shared_name(name) is not None:
        shared = SharedChannel(str(name), capacity, lease)
        return Sender(SharedEnd(shared)), Receiver(SharedEnd(shared))
    ends = LocalEnds(capacity)
    return Sender(ends), Receiver(ends)
