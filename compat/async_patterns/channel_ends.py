"""The two kinds of channel: a queue in this process, or a list in Redis."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from graft.compat.async_patterns import polling
from graft.compat.fair_semaphore import wake
from graft.tasks.errors import TaskQueueError
from graft.tasks.ids import new_id
from graft.tasks.shared.channel import SharedChannel, SharedClosed, Side
from graft.tasks.shared.lease_renewer import lease_renewer

END: Final = object()
"""Comes after the last value."""


class ChannelClosedError(TaskQueueError):
    """The receiver or this sender is closed: the value was not sent."""


class Ends(Protocol):
    """Both kinds of channel, as their senders and receivers use them."""

    async def send(self, value: Any) -> bool: ...
    async def receive(self) -> Any: ...
    def room(self) -> int: ...
    def sender_closed(self) -> None: ...
    def receiver_closed(self) -> None: ...


class LocalEnds:
    """A queue under a lock; a waiting end is woken through its own loop, to try again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.RLock()  # The collector may drop, and so close, an end at any point.
        self._values: deque[Any] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._is_sent = self._is_dropped = False

    def room(self) -> int:
        return self._capacity - len(self._values)

    async def send(self, value: Any) -> bool:
        def attempt() -> bool:
            if self._is_dropped:
                raise ChannelClosedError("the receiver is closed: nobody would receive the value")
            has_room = self.room() > 0
            if has_room:
                self._values.append(value)
            return has_room

        return await self._until(self._senders, attempt)

    async def receive(self) -> Any:
        taken: list[Any] = []

        def attempt() -> bool:
            if self._values:
                taken.append(self._values.popleft())
            elif self._is_sent:
                taken.append(END)
            return bool(taken)

        await self._until(self._receivers, attempt)
        return taken[0]

    async def _until(self, waiters: deque[asyncio.Future[None]], attempt: Callable[[], bool]) -> bool:
        """Repeat *attempt*, behind earlier waiters, until it succeeds; whether it had to wait."""
        waiter: asyncio.Future[None] | None = None
        try:
            while True:
                with self._lock:
                    if (waiter or not waiters) and attempt():
                        return waiter is not None
                    fresh = asyncio.get_running_loop().create_future()
                    if waiter and waiter in waiters:
                        waiters[waiters.index(waiter)] = fresh  # Woken in vain: stay first.
                    else:
                        waiters.append(fresh)
                    waiter = fresh
                    self._wake_first()  # The collector may have closed the other end since the attempt.
                await waiter
        finally:
            with self._lock:
                if waiter and waiter in waiters:
                    waiters.remove(waiter)
                self._wake_first()

    def sender_closed(self) -> None:
        with self._lock:
            self._is_sent = True
            _wake_all(self._receivers)

    def receiver_closed(self) -> None:
        with self._lock:
            self._is_dropped = True
            self._values.clear()
            _wake_all(self._senders)

    def _wake_first(self) -> None:
        """Wake the first end on either side that can go on."""
        if self._values or self._is_sent:
            _wake_one(self._receivers)
        if self.room() > 0 or self._is_dropped:
            _wake_one(self._senders)


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters and not wake(waiters[0]):
        waiters.popleft()  # Its loop was closed.


def _wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        wake(waiter)


class SharedEnd:
    """One end of a channel in Redis, with the lease that says it is there."""

    def __init__(self, shared: SharedChannel) -> None:
        self._channel = shared
        self._holder = new_id()
        self._side: Side | None = None
        self._is_over = False

    def room(self) -> int:
        return self._channel.room()

    async def send(self, value: Any) -> bool:
        sealed = self._channel.seal(value)
        self._stay("sender")
        attempts = 0

        def attempt() -> bool | None:
            nonlocal attempts
            attempts += 1
            return self._channel.send(self._holder, sealed) or None

        try:
            await polling.poll(attempt)
        except SharedClosed:
            raise ChannelClosedError(f"the receiver of the channel {self._channel.name!r} is closed") from None
        return attempts > 1

    async def receive(self) -> Any:
        if self._is_over:
            return END
        self._stay("receiver")
        try:
            (value,) = await polling.poll(lambda: self._channel.receive(self._holder) or None)
        except SharedClosed:
            self._is_over = True
            self.receiver_closed()
            return END
        return value

    def _stay(self, side: Side) -> None:
        if self._side is None:
            self._side = side
            channel, holder = self._channel, self._holder  # The renewer must not keep this end alive.
            lease_renewer().keep(holder, lambda: channel.renew(side, holder), channel.lease / 3)

    def sender_closed(self) -> None:
        self._close("sender")

    def receiver_closed(self) -> None:
        self._close("receiver")

    def _close(self, side: Side) -> None:
        if self._side is not None:
            self._side = None
            polling.soon(_leave, self._channel, side, self._holder)


def _leave(channel: SharedChannel, side: Side, holder: str) -> None:
    lease_renewer().drop(holder)
    channel.close(side, holder)
